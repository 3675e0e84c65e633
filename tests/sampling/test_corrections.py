"""Corrections: neutral elements, closed forms, and the zero-error control."""

import math
from itertools import pairwise
from typing import get_args

import numpy as np
import pytest
import pywt
import torch
from hypothesis import given
from hypothesis import strategies as st

from snrkit.base.errors import SnrkitError
from snrkit.base.wavelet import Bands, dwt2, idwt2
from snrkit.data.toy import gaussian_denoiser
from snrkit.diffusion.level import level_of
from snrkit.diffusion.prediction import X0, Cond, Prediction, Wrapped, from_x0
from snrkit.diffusion.process import Ddpm, Edm, Flow, Vp
from snrkit.sampling.corrections import (
    AdaptiveProjectedGuidance,
    AnyCorrection,
    Autoguidance,
    CfgZeroStar,
    ClassifierFreeGuidance,
    ClipX0,
    Dcw,
    DynamicThreshold,
    EpsilonScaling,
    FrequencyDecoupledGuidance,
    Gain,
    NoiseAwareness,
    NoiseAwarenessClassifier,
    NoiseLevelCorrection,
    PerturbedAttention,
    ScoreRescaling,
    TimeShift,
    X0Rescale,
)
from snrkit.sampling.corrections.clean_image import OpenedX0Rescale
from snrkit.sampling.corrections.dcw import Constant, Piecewise, ReverseVariance, SigmaShare
from snrkit.sampling.grid import Karras, UniformTime
from snrkit.sampling.sample import sample, start
from snrkit.sampling.sampler import Dummy, Sampler, dry_run, open_with
from snrkit.sampling.solvers import Euler, Heun, Unipc
from snrkit.sampling.step import Call, ForwardStatistics, GivenFit, Position, Step
from tests.exact import PROCESSES, THREE, VARIANCE, gaussian, mixture, run, tensor
from tests.sampling.test_solvers import OF_EACH

NEUTRAL = {
    "epsilon_scaling": EpsilonScaling(scale=1.0, slope=0.0),
    "gain": Gain(gain=0.0),
    "dcw": Dcw(pixel=0.0, low=0.0, high=0.0, wavelet="db4"),
    "score_rescaling": ScoreRescaling(k=1.0, spread=0.7),
    "time_shift": TimeShift(unit="nats", window=0.0),
    "time_shift released": TimeShift(variant="released", unit="nats", window=0.0),
    "noise_level_correction": NoiseLevelCorrection(share=0.0, told="nominal"),
    "clip_x0": ClipX0(limit=1e6),
    "dynamic_threshold": DynamicThreshold(floor=1e6),
    "x0_rescale": X0Rescale(share=0.0),
    "cfg": ClassifierFreeGuidance(weight=0.0, rescale=1.0),
    "fdg": FrequencyDecoupledGuidance(weight=0.0, low=0.5, high=2.0),
    "apg": AdaptiveProjectedGuidance(weight=0.0, radius=1.0),
    "cfg_zero_star": CfgZeroStar(weight=0.0),
    "noise_awareness": NoiseAwareness(weight=0.0),
    "noise_awareness_classifier": NoiseAwarenessClassifier(weight=0.0),
    "autoguidance": Autoguidance(weight=0.0, average="network"),
    "perturbed_attention": PerturbedAttention(weight=0.0),
}
ACTIVE = {
    "epsilon_scaling": EpsilonScaling(scale=1.01),
    "gain": Gain(gain=0.01),
    "epsilon_scaling linear": EpsilonScaling(slope=0.01),
    "epsilon_scaling first": EpsilonScaling(scale=1.01, evaluation="first"),
    "dcw": Dcw(pixel=0.01),
    "dcw low": Dcw(low=0.01, schedule=SigmaShare()),
    "dcw high": Dcw(high=0.01, schedule=ReverseVariance()),
    "dcw double": Dcw(low=0.01, high=0.02, schedule=Piecewise(at=0.0), wavelet="db2"),
    "dcw before": Dcw(low=0.01, state="before"),
    "score_rescaling": ScoreRescaling(k=1.2),
    "time_shift": TimeShift(unit="nats", window=0.3),
    "time_shift released": TimeShift(variant="released", unit="nats", window=0.3),
    "noise_level_correction": NoiseLevelCorrection(share=0.3),
    "noise_level_correction nominal": NoiseLevelCorrection(share=0.3, told="nominal"),
    "clip_x0": ClipX0(limit=0.5),
    "dynamic_threshold": DynamicThreshold(floor=0.5),
    "x0_rescale": X0Rescale(share=0.5),
    "cfg": ClassifierFreeGuidance(weight=0.5),
    "fdg": FrequencyDecoupledGuidance(weight=0.5, low=0.2),
    "apg": AdaptiveProjectedGuidance(weight=0.5),
    "cfg_zero_star": CfgZeroStar(weight=0.5, zero_steps=0),
    "cfg_zero_star still": CfgZeroStar(weight=0.5, scale="one"),
    "noise_awareness": NoiseAwareness(weight=0.5),
    "noise_awareness_classifier": NoiseAwarenessClassifier(weight=0.5),
    "autoguidance": Autoguidance(weight=0.5, average="network"),
    "perturbed_attention": PerturbedAttention(weight=0.5, layers="all"),
}


class Around(Dummy):
    """Sources made up for a test: a weaker mixture, a pull to the centre, spreads of 1/2."""

    def denoiser(self, named):
        return mixture(self.process, seed=9)

    def gradient(self, x, logsnr):
        return -0.1 * x

    def forward(self, levels):
        halves = torch.full((len(levels),), 0.5, dtype=torch.float64)
        return ForwardStatistics(halves, halves)


def knowing(process):
    """A denoiser whose belief depends on label, on being told the level and on its attention, image by image."""
    plain, unlabelled, blind = mixture(process), mixture(process, seed=10), mixture(process, seed=11)
    alone = mixture(process, seed=12)

    def answer(x, level, told, cond):
        if cond.alone is not None:
            return alone(x, level)
        chosen = blind if told is None else unlabelled if bool((cond.labels < 0).all()) else plain
        return chosen(x, level, told=level if told is None else told)

    return Wrapped(process, answer)


def both(process, solver, correction):
    """(without, with) a correction, from the same state and noise."""
    ends = []
    for corrections in ((), (correction,)):
        sampler = Sampler(grid=Karras(steps=6), solver=solver, corrections=corrections)
        ready = open_with(sampler, process, Around(process))
        x = start(process, torch.linspace(-2, 2, 12).reshape(3, 1, 2, 2), ready.levels[0])
        draws = torch.Generator().manual_seed(4)
        noise = lambda s, g=draws: torch.randn(s.shape, dtype=s.dtype, generator=g)  # noqa: E731
        cond = Cond(labels=torch.zeros(3, dtype=torch.int64))
        for step in sample(
            knowing(process), ready.solver, ready.levels, x, corrections=ready.corrections, noise=noise, cond=cond
        ):
            x = step.x_next
        ends.append(x)
    return ends


@pytest.mark.parametrize("process", THREE.values(), ids=THREE)
@pytest.mark.parametrize("solver", OF_EACH.values(), ids=OF_EACH)
def test_neutral_changes_no_bit_and_active_changes_the_sample(process, solver):
    """The neutral element, and its converse, for every correction with every solver."""
    for name, correction in NEUTRAL.items():
        plain, neutral = both(process, solver, correction)
        assert torch.equal(plain, neutral), name
    for name, correction in ACTIVE.items():
        plain, active = both(process, solver, correction)
        assert not torch.allclose(plain, active, rtol=0, atol=1e-6), name


def test_every_kind_of_correction_is_tested():
    """A correction added to the union has to enter the test of neutral and active values."""
    kinds = {cls.model_fields["kind"].default for cls in get_args(get_args(AnyCorrection)[0])}
    assert kinds == {c.kind for c in NEUTRAL.values()} == {c.kind for c in ACTIVE.values()}


@pytest.mark.parametrize("scaling", ["ve", "flow"])
@given(scale=st.floats(-0.2, 0.2), here=st.floats(-6, 3), ahead=st.floats(0.1, 4))
def test_pixel_dcw_is_an_euler_step_to_a_noisier_level(scaling, scale, here, ahead):
    """x' + s (x' - x0) equals the Euler step of sigma to (1 + s) sigma' at alpha', in ve and flow, to 1e-12."""
    process = {"ve": Edm(), "flow": Flow()}[scaling]
    levels = (level_of(tensor(here), scaling), level_of(tensor(here + ahead), scaling))
    denoise, x = mixture(process), torch.randn(2, 1, 2, 2, dtype=torch.float64)
    (step,) = sample(denoise, Euler(), levels, x, corrections=(Dcw(pixel=scale),))
    p, there = step.calls[0].prediction, levels[1]
    if scaling == "ve":
        closed = p.x0 + (1 + scale) * there.sigma * p.eps
    else:  # sigma' -> (1 + s) sigma' and alpha' = 1 - sigma' follows
        sigma = (1 + scale) * there.sigma
        closed = (1 - sigma) * p.x0 + sigma * p.eps
    torch.testing.assert_close(step.x_next, closed, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("scaling", ["ve", "flow"])
@given(scale=st.floats(-0.2, 0.2), here=st.floats(-6, 3), ahead=st.floats(0.1, 4))
def test_pixel_dcw_of_the_state_before_is_an_euler_step_to_another_level(scaling, scale, here, ahead):
    """x' + s (x - x0) is the Euler step to sigma' + s sigma, in ve and flow, and so x' - x0 with s sigma/sigma'."""
    process = {"ve": Edm(), "flow": Flow()}[scaling]
    levels = (level_of(tensor(here), scaling), level_of(tensor(here + ahead), scaling))
    denoise, x = mixture(process), torch.randn(2, 1, 2, 2, dtype=torch.float64)
    (step,) = sample(denoise, Euler(), levels, x, corrections=(Dcw(pixel=scale, state="before"),))
    p, sigma = step.calls[0].prediction, levels[1].sigma + scale * levels[0].sigma
    closed = (1 if scaling == "ve" else 1 - sigma) * p.x0 + sigma * p.eps
    torch.testing.assert_close(step.x_next, closed, rtol=1e-12, atol=1e-12)
    matched = Dcw(pixel=scale * float(levels[0].sigma / levels[1].sigma))
    (other,) = sample(denoise, Euler(), levels, x, corrections=(matched,))
    torch.testing.assert_close(step.x_next, other.x_next, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES)
@given(scale=st.floats(0.9, 1.1), here=st.floats(-6, 3), ahead=st.floats(0.1, 4))
def test_epsilon_scaling_is_an_euler_step_of_the_ratio(process, scale, here, ahead):
    """In x/alpha and r = sigma/alpha: the Euler step to r' + (r - r')(1 - 1/b), in every scaling, to 1e-12."""
    levels = (process.level(tensor(here)), process.level(tensor(here + ahead)))
    denoise, x = mixture(process), torch.randn(2, 1, 2, 2, dtype=torch.float64)
    (step,) = sample(denoise, Euler(), levels, x, corrections=(EpsilonScaling(scale=scale),))
    p = denoise(x, levels[0])
    ratio, ratio_next = (level.sigma / level.alpha for level in levels)
    target = ratio_next + (ratio - ratio_next) * (1 - 1 / scale)
    closed = x / levels[0].alpha + (target - ratio) * p.eps
    torch.testing.assert_close(step.x_next / levels[1].alpha, closed, rtol=1e-12, atol=1e-10)


def test_dcw_equals_epsilon_scaling_on_ve_with_the_matched_coefficient():
    """lambda = (sigma/sigma' - 1)(1 - 1/b), except in the last step."""
    process, b = Edm(), 1.02
    levels = Karras(steps=8).levels(process)
    x = start(process, torch.randn(3, 1, 2, 2), levels[0])
    denoise, state = mixture(process), x
    for step in sample(denoise, Euler(), levels[:-1], x, corrections=(EpsilonScaling(scale=b),)):
        here, there = step.position.here, step.position.there
        scale = float((here.sigma / there.sigma - 1) * (1 - 1 / b))
        (matched,) = sample(denoise, Euler(), (here, there), state, corrections=(Dcw(pixel=scale),))
        torch.testing.assert_close(matched.x_next, step.x_next, rtol=1e-12, atol=1e-12)
        state = step.x_next


@pytest.mark.parametrize("solver", OF_EACH.values(), ids=OF_EACH)
def test_dcw_leaves_the_last_step_alone(solver):
    """Into the clean level nothing is done: x' is x0 itself there, but for ipndm, which extrapolates."""
    process = Edm()
    levels = Karras(steps=4).levels(process)
    steps = list(sample(mixture(process), solver, levels, start(process, torch.randn(2, 1, 2, 2), levels[0]),
                        corrections=(Dcw(pixel=0.5),), noise=torch.randn_like))  # fmt: skip
    assert Dcw(pixel=0.5).after(steps[-1]) is steps[-1].x_next
    assert torch.equal(steps[-1].x_next, steps[-1].calls[-1].prediction.x0) != solver.kind.startswith("ipndm")


def test_epsilon_scaling_keeps_the_state_equation():
    """The corrected belief still explains the state."""
    process, x = Flow(), torch.randn(3, 1, 2, 2, dtype=torch.float64)
    level = process.level(tensor(0.5))
    denoise = EpsilonScaling(scale=1.1).wrap(mixture(process), place_at(level))
    p = denoise(x, level)
    torch.testing.assert_close(level.alpha * p.x0 + level.sigma * p.eps, x)


def place_at(level):
    return Position(0, (level, level), level, level)


def test_epsilon_scaling_at_pure_noise_is_refused():
    """Its x0 would be x0 + inf * eps."""
    levels = UniformTime(steps=4).levels(Flow())
    with pytest.raises(SnrkitError, match="undefined at alpha = 0"):
        run(Euler(), mixture(Flow()), levels, torch.zeros(1, 1, 2, 2), corrections=(EpsilonScaling(scale=1.1),))


def labelled(process):
    """A denoiser whose belief depends on the label; -1 is no label."""
    parts = {label: mixture(process, seed=label + 10) for label in (-1, 0, 1)}

    def answer(x, level, told, cond):
        labels = [-1] * len(x) if cond is None else cond.labels.tolist()
        answers = [parts[label](x[i : i + 1], level) for i, label in enumerate(labels)]
        return Prediction(torch.cat([a.x0 for a in answers]), torch.cat([a.eps for a in answers]))

    return Wrapped(process, answer)


def test_guidance_is_c_plus_w_times_c_minus_u():
    """One formula, weight 0 neutral bit for bit, weight -1 the unlabelled model."""
    process, x = Edm(), torch.randn(2, 1, 2, 2, dtype=torch.float64)
    level, cond = process.level(tensor(0.0)), Cond(labels=torch.tensor([0, 1]))
    denoise = labelled(process)
    c, u = denoise(x, level, cond=cond), denoise(x, level, cond=Cond(labels=torch.tensor([-1, -1])))
    for weight in (0.0, 0.7, -1.0):
        guided = ClassifierFreeGuidance(weight=weight).wrap(denoise, place_at(level))(x, level, cond=cond)
        torch.testing.assert_close(guided.x0, c.x0 + weight * (c.x0 - u.x0))
        torch.testing.assert_close(level.alpha * guided.x0 + level.sigma * guided.eps, x)
    assert torch.equal(ClassifierFreeGuidance().wrap(denoise, place_at(level))(x, level, cond=cond).x0, c.x0)
    with pytest.raises(SnrkitError, match="labels"):
        ClassifierFreeGuidance(weight=1).wrap(denoise, place_at(level))(x, level)


def control(solver, steps, variance, correction=()):
    """Final standard deviation over the data's, exact denoiser of N(0, variance), EDM's grid and exact start."""
    process = Edm()
    levels = Karras(steps=steps).levels(process)
    denoise = gaussian_denoiser(process, 0.0, variance, (1, 1, 1))
    x = start(process, torch.ones(1, 1, 1, 1), levels[0], variance)
    return float(run(solver, denoise, levels, x, corrections=correction)) / math.sqrt(variance)


def crossing(make, solver, steps, variance, low, high):
    """The coefficient at which the control's ratio is 1, by bisection."""
    side = control(solver, steps, variance, (make(low),)) > 1
    for _ in range(60):
        middle = (low + high) / 2
        if (control(solver, steps, variance, (make(middle),)) > 1) == side:
            low = middle
        else:
            high = middle
    return (low + high) / 2


@pytest.mark.parametrize(
    ("solver", "steps", "ratio", "b", "scale"),
    [
        (Euler(), 13, 0.7893, 1.0341, 0.0306),
        (Euler(), 21, 0.8676, 1.0233, 0.0109),
        (Euler(), 35, 0.9198, 1.0148, 0.0038),
        (Heun(), 11, 1.1746, 0.9526, -0.0252),
        (Heun(), 18, 1.0553, 0.9884, -0.0050),
    ],
)
def test_zero_error_control(solver, steps, ratio, b, scale):
    """A perfect network needs b > 1, lambda > 0 under Euler and the reverse under Heun, to the printed digits."""
    assert control(solver, steps, 0.25) == pytest.approx(ratio, abs=5.1e-5)
    found = crossing(lambda v: EpsilonScaling(scale=v), solver, steps, 0.25, 0.9, 1.1)
    assert found == pytest.approx(b, abs=5.1e-5)
    found = crossing(lambda v: Dcw(pixel=v), solver, steps, 0.25, -0.1, 0.1)
    assert found == pytest.approx(scale, abs=5.1e-5)


def dcw_as_published(x_next, x0, t, sigma_max, low=0.0, high=0.0, mode="constant"):
    """The update of each band with PyWavelets, as printed in eqs. 18-21 with the coefficients of the code."""
    share = t / sigma_max
    of_low, of_high = (low, high) if mode == "constant" else (low * share, high * (1 - share))
    theirs, ours = (pywt.dwt2(part.numpy(), "haar", "zero") for part in (x0, x_next))
    moved = ours[0] + of_low * (ours[0] - theirs[0])
    details = tuple(a + of_high * (a - b) for a, b in zip(ours[1], theirs[1], strict=True))
    return torch.from_numpy(pywt.idwt2((moved, details), "haar", "zero"))


@pytest.mark.parametrize("heun", [False, True])
@pytest.mark.parametrize("mode", ["constant", "sigma"])
@pytest.mark.parametrize(("low", "high"), [(0.05, 0.0), (0.0, 0.03), (0.05, -0.02)])
def test_dcw_on_edm_is_the_published_update_step_for_step(heun, mode, low, high):
    """Low, high and double on EDM's Euler and Heun in float64: with Heun, x0 is that of the second evaluation."""
    process = Edm()
    denoise, levels = mixture(process, shape=(1, 4, 4)), Karras(steps=7).levels(process)
    x = state = start(process, torch.randn(3, 1, 4, 4), levels[0])
    sigmas = [float(level.sigma) for level in levels]
    d_at = lambda s, sigma: denoise(s, process.level(tensor(-2 * math.log(sigma)))).x0  # noqa: E731
    correction = Dcw(low=low, high=high, schedule=SigmaShare() if mode == "sigma" else Constant())
    steps = sample(denoise, Heun() if heun else Euler(), levels, x, corrections=(correction,))
    for step, (t, t_next) in zip(steps, pairwise(sigmas), strict=True):
        denoised = d_at(state, t)
        slope = (state - denoised) / t
        x_next = state + (t_next - t) * slope
        if t_next > 0:
            if heun:
                denoised = d_at(x_next, t_next)
                x_next = state + (t_next - t) * (slope / 2 + (x_next - denoised) / t_next / 2)
            x_next = dcw_as_published(x_next, denoised, t, sigmas[0], low, high, mode)
        assert step.x_next.dtype == torch.float64
        torch.testing.assert_close(step.x_next, x_next, rtol=0, atol=1e-9)
        state = x_next


def difference_after(correction, x_next, x0, level=None):
    """x_next after a correction of state, on one edm step whose last prediction is x0."""
    process = Edm()
    here, there = process.level(tensor(-2.0)), level or process.level(tensor(0.0))
    position = Position(0, (here, there), here, there)
    return correction.after(Step(position, x_next, (Call(here, Prediction(x0, x0)),), x_next))


@given(
    scale=st.floats(-0.5, 0.5), height=st.integers(2, 9), width=st.integers(2, 9),
    wavelet=st.sampled_from(["haar", "db4", "sym8", "bior2.2", "rbio3.1", "coif2"]),
    padding=st.sampled_from(["zero", "symmetric", "periodization", "smooth"]),
)  # fmt: skip
def test_double_of_one_coefficient_is_pixel(scale, height, width, wavelet, padding):
    """double(s, s) = pixel(s); the increments of low and high add up to pixel's: any size, wavelet and padding."""
    x, x0 = torch.randn(2, 2, 1, height, width, dtype=torch.float64)
    make = lambda **c: difference_after(Dcw(**c, wavelet=wavelet, padding=padding), x, x0) - x  # noqa: E731
    pixel = difference_after(Dcw(pixel=scale), x, x0) - x
    torch.testing.assert_close(make(low=scale, high=scale), pixel, rtol=0, atol=1e-9)
    torch.testing.assert_close(make(low=scale) + make(high=scale), pixel, rtol=0, atol=1e-9)


@given(low=st.floats(-0.5, 0.5), high=st.floats(-0.5, 0.5), wavelet=st.sampled_from(["haar", "db4", "bior4.4"]))
def test_dcw_is_two_transforms_and_an_inverse(low, high, wavelet):
    """One projection of the difference equals transforming both, correcting every band, and transforming back."""
    x, x0 = torch.randn(2, 2, 3, 6, 7, dtype=torch.float64)
    a, b = dwt2(x, wavelet), dwt2(x0, wavelet)
    moved = Bands(*(
        getattr(a, n) + (low if n == "ll" else high) * (getattr(a, n) - getattr(b, n)) for n in Bands.__slots__
    ))  # fmt: skip
    ours = difference_after(Dcw(low=low, high=high, wavelet=wavelet), x, x0)
    torch.testing.assert_close(ours, idwt2(moved, (6, 7), wavelet), rtol=0, atol=1e-9)


def test_dcw_keeps_the_dtype_of_the_state():
    """float64 stays float64, float32 float32."""
    for dtype in (torch.float64, torch.float32):
        x, x0 = torch.randn(2, 1, 1, 5, 5, dtype=dtype)
        assert difference_after(Dcw(low=0.1, high=0.2, wavelet="db4"), x, x0).dtype == dtype


def test_unscaled_space_compares_with_alpha_x0():
    """x'/alpha' - x0, multiplied back by alpha'."""
    process = Flow()
    here, there = process.level(tensor(-2.0)), process.level(tensor(0.0))
    x, x0 = torch.randn(2, 1, 1, 4, 4, dtype=torch.float64)
    step = Step(Position(0, (here, there), here, there), x, (Call(here, Prediction(x0, x0)),), x)
    found = Dcw(pixel=0.1, space="unscaled").after(step)
    torch.testing.assert_close(found, x + there.alpha * 0.1 * (x / there.alpha - x0))


def test_the_state_before_is_compared_with_x0_at_its_own_level():
    """x - x0, and x/alpha - x0 multiplied back by alpha where unscaled; at its default the option is in no record."""
    process = Flow()
    here, there = process.level(tensor(-2.0)), process.level(tensor(0.0))
    x, x_next, x0 = torch.randn(3, 1, 1, 4, 4, dtype=torch.float64)
    step = Step(Position(0, (here, there), here, there), x, (Call(here, Prediction(x0, x0)),), x_next)
    for space, wanted in (("native", x - x0), ("unscaled", here.alpha * (x / here.alpha - x0))):
        correction = Dcw(pixel=0.1, space=space, state="before")
        torch.testing.assert_close(correction.after(step), x_next + 0.1 * wanted)
        assert Dcw(**correction.model_dump()) == correction
    assert "state" not in Dcw(pixel=0.1).model_dump()


@pytest.mark.parametrize("process", THREE.values(), ids=THREE)
def test_schedules_of_dcw(process):
    """sigma/sigma_max of the level before the step; the variance of DDPM's reverse step; a switch at a logsnr."""
    levels = Karras(steps=8).levels(process)
    places = [Position(i, levels, *pair) for i, pair in enumerate(pairwise(levels))]
    low, high = SigmaShare().gains(places[0])
    assert (float(low), float(high)) == (1.0, 0.0)
    for position in places[:-1]:
        low, high = SigmaShare().gains(position)
        torch.testing.assert_close(low, position.here.sigma / levels[0].sigma)
        torch.testing.assert_close(low + high, tensor(1.0))
        abar, abar_next = torch.sigmoid(position.here.logsnr), torch.sigmoid(position.there.logsnr)
        beta = 1 - abar / abar_next
        variance = (1 - abar_next) / (1 - abar) * beta
        for found, wanted in zip(ReverseVariance().gains(position), (variance, 1 - variance), strict=True):
            torch.testing.assert_close(found, wanted)
        early = float(position.here.logsnr) < 0.5
        assert [float(g) for g in Piecewise(at=0.5).gains(position)] == ([1, 0] if early else [0, 1])


def test_schedules_take_the_level_of_the_grid():
    """Where a time shift moved the level of the state, sigma/sigma_max stays that of the step, as in the code."""
    process = Edm()
    levels = Karras(steps=8).levels(process)
    moved = Position(3, levels, process.level(levels[3].logsnr + tensor([-0.2, 0.3])), levels[4])
    plain = Position(3, levels, levels[3], levels[4])
    for schedule in (SigmaShare(), ReverseVariance(), Piecewise(at=float(levels[3].logsnr))):
        for found, wanted in zip(schedule.gains(moved), schedule.gains(plain), strict=True):
            assert torch.equal(found, wanted)


def test_gains_of_an_image_are_its_own():
    """Where every image has levels of its own, each is corrected with its own gain."""
    process = Edm()
    grid = tuple(process.level(tensor(values)) for values in ([-4.0, -3.0], [-1.0, 0.5], [2.0, 3.0]))
    x, x0 = torch.randn(2, 2, 1, 4, 4, dtype=torch.float64)
    correction = Dcw(low=0.2, high=-0.1, schedule=SigmaShare())
    position = Position(1, grid, grid[1], grid[2])
    both = correction.after(Step(position, x, (Call(grid[1], Prediction(x0, x0)),), x))
    for i in range(2):
        own = tuple(process.level(level.logsnr[i]) for level in grid)
        alone = Position(1, own, own[1], own[2])
        part = slice(i, i + 1)
        step = Step(alone, x[part], (Call(own[1], Prediction(x0[part], x0[part])),), x[part])
        torch.testing.assert_close(both[part], correction.after(step), rtol=0, atol=1e-12)


def test_the_first_evaluation_is_heuns_first():
    """`evaluation: first` takes the reconstruction at the level where the step begins, `last` that where it ends."""
    process = Edm()
    levels = Karras(steps=5).levels(process)
    x = start(process, torch.randn(2, 1, 2, 2), levels[0])
    plain = next(iter(sample(mixture(process), Heun(), levels, x)))
    for which, call in (("first", 0), ("last", 1)):
        found = Dcw(pixel=0.3, evaluation=which).after(plain)
        torch.testing.assert_close(found, plain.x_next + 0.3 * (plain.x_next - plain.calls[call].prediction.x0))


@pytest.mark.parametrize("solver", [Unipc(p=3), Unipc(p=3, lower_order_final=False), Unipc(p=2), Unipc(p=1)], ids=str)
def test_unipc_keeps_what_dcw_did(solver):
    """A network that always says the same x0 leaves the corrector nothing to correct: DCW's increments add as in Euler.

    So x/alpha - x0 shrinks by the ratio of noise levels in every step, and by 1 + lambda where DCW acts.
    """
    process, scale = Edm(), 0.05
    levels, x0 = Karras(steps=6).levels(process), torch.full((2, 1, 2, 2), 0.3, dtype=torch.float64)
    always = Wrapped(process, lambda s, lv, told, cond: from_x0(s, x0, lv))
    x = start(process, torch.randn(2, 1, 2, 2), levels[0])
    steps = list(sample(always, solver, levels, x, corrections=(Dcw(pixel=scale),)))
    for i, step in enumerate(steps[:-1]):
        wanted = x0 + (x - x0) * (levels[i + 1].sigma / levels[0].sigma) * (1 + scale) ** (i + 1)
        torch.testing.assert_close(step.x_next, wanted, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(steps[-1].x_next, x0)


@pytest.mark.parametrize(
    ("state", "said"), [((2, 16, 64), "unpack"), ((1, 1, 1, 1), "2 pixels"), ((1, 1, 1, 8), "2 pixels")]
)
def test_dcw_refuses_what_is_no_image(state, said):
    """Packed tokens and images of one pixel have no bands."""
    x, x0 = torch.randn(2, *state, dtype=torch.float64)
    with pytest.raises(SnrkitError, match=said):
        difference_after(Dcw(low=0.1), x, x0)
    assert torch.isfinite(difference_after(Dcw(pixel=0.1), x, x0)).all()


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"pixel": 0.1, "low": 0.1}, "low and high in one"),
        ({"pixel": 0.1, "schedule": SigmaShare()}, "no effect on pixel"),
        ({"pixel": 0.1, "wavelet": "db4"}, "no effect on pixel"),
        ({"pixel": 0.1, "padding": "symmetric"}, "no effect on pixel"),
        ({"low": 0.1, "wavelet": "dmey"}, "does not reconstruct"),
        ({"low": 0.1, "wavelet": "haarr"}, "unknown wavelet"),
        ({"low": 0.1, "padding": "mirror"}, "unknown padding"),
    ],
)
def test_dcw_refuses_settings_that_cannot_act(settings, said):
    """Contradictions and unknown names are refused while the config is read."""
    with pytest.raises(ValueError, match=said):
        Dcw(**settings)


@pytest.mark.parametrize("slope", [0.0, 0.002])
def test_epsilon_scaling_is_the_published_update_at_both_heun_calls(slope):
    """EDM-ES: eps = (x - D)/sigma, eps/b, D' = x - sigma eps at both evaluations; b = k n + b0 over steps to come."""
    process, b0 = Edm(), 1.01
    denoise, levels = mixture(process), Karras(steps=7).levels(process)
    x = start(process, torch.randn(3, 1, 2, 2), levels[0])
    sigmas = [float(level.sigma) for level in levels]
    state = x
    for i, (t, t_next) in enumerate(pairwise(sigmas)):
        b = slope * (6 - i) + b0

        def scaled(s, sigma, b=b):
            eps = (s - denoise(s, process.level(tensor(-2 * math.log(sigma)))).x0) / sigma / b
            return s - sigma * eps

        d = (state - scaled(state, t)) / t
        x_next = state + (t_next - t) * d
        if t_next > 0:
            x_next = state + (t_next - t) * (d / 2 + (x_next - scaled(x_next, t_next)) / t_next / 2)
        state = x_next
    ours = run(Heun(), denoise, levels, x, corrections=(EpsilonScaling(scale=b0, slope=slope),))
    torch.testing.assert_close(ours, state, rtol=0, atol=1e-9)


@pytest.mark.parametrize("process", THREE.values(), ids=THREE)
def test_epsilon_scaling_of_the_first_evaluation_leaves_the_second_alone(process):
    """Heun, written out, with eps/b and the x0 that follows in its first slope and the model's own in its second."""
    b, denoise, levels = 1.02, mixture(process), Karras(steps=7).levels(process)
    x = state = start(process, torch.randn(3, 1, 2, 2), levels[0])
    for here, there in pairwise(levels):
        eps = denoise(state, here).eps / b
        x0 = (state - here.sigma * eps) / here.alpha
        guess = there.alpha * x0 + there.sigma * eps
        if not there.is_clean():
            second = denoise(guess, there)
            x0, eps = (x0 + second.x0) / 2, (eps + second.eps) / 2
        state = state + (there.alpha - here.alpha) * x0 + (there.sigma - here.sigma) * eps
    ours = run(Heun(), denoise, levels, x, corrections=(EpsilonScaling(scale=b, evaluation="first"),))
    torch.testing.assert_close(ours, state, rtol=0, atol=1e-9)


def test_epsilon_scaling_of_the_first_evaluation_is_that_of_every_one_where_there_is_one():
    """With solvers of one evaluation a step the option changes no bit, and at its default it is in no record."""
    process = Edm()
    levels = Karras(steps=6).levels(process)
    x = start(process, torch.randn(3, 1, 2, 2), levels[0])
    every, first = EpsilonScaling(scale=1.02), EpsilonScaling(scale=1.02, evaluation="first")
    for solver in (Euler(), Unipc()):
        assert torch.equal(*(run(solver, mixture(process), levels, x, corrections=(one,)) for one in (every, first)))
    assert "evaluation" not in every.model_dump()
    assert EpsilonScaling(**first.model_dump()) == first


def test_epsilon_scaling_refuses_a_divisor_of_zero():
    """A slope that takes the divisor to 0 is named with its step."""
    sampler = Sampler(grid=Karras(steps=7), solver=Euler(), corrections=(EpsilonScaling(slope=-0.5),))
    with pytest.raises(SnrkitError, match="divides by -2 in step 0"):
        dry_run(sampler, Edm(), X0(), (1, 4, 4))


def test_epsilon_scaling_leaves_noise_in_the_image_and_dcw_none():
    """At the last step ES leaves (1 - 1/b) sigma eps in the image."""
    process, b = Edm(), 1.1
    levels = (process.level(tensor(3.0)), process.level(tensor(math.inf)))
    denoise, x = mixture(process), torch.randn(2, 1, 2, 2, dtype=torch.float64)
    p = denoise(x, levels[0])
    scaled = run(Euler(), denoise, levels, x, corrections=(EpsilonScaling(scale=b),))
    torch.testing.assert_close(scaled - p.x0, (1 - 1 / b) * levels[0].sigma * p.eps)
    assert torch.equal(run(Euler(), denoise, levels, x, corrections=(Dcw(low=0.3),)), p.x0)


@pytest.mark.parametrize("data_variance", [0.0, 0.25])
def test_time_shift_paper_is_the_published_update_step_for_step(data_variance):
    """t_s in the window with 1 - abar nearest to var(x) of each image; the network is told t_s and starts there."""
    process, window, cutoff = Ddpm(), 10, 300
    levels = UniformTime(steps=10).levels(process)
    times = [float(process.time(level.logsnr)) for level in levels[:-1]]
    denoise, table = mixture(process), process.table()
    x = state = start(process, torch.randn(4, 1, 2, 2), levels[0])
    correction = TimeShift(window=window, cutoff=cutoff, data_variance=data_variance)
    shifted = 0
    for i, step in enumerate(sample(denoise, Euler(), levels, x, corrections=(correction,))):
        chosen = []
        for image in state:
            t = round(times[i])
            if i > 0 and t > cutoff:
                near = range(t - window // 2, t + window // 2 + 1)
                own = float(image.var(correction=0))
                abar = {k: float(torch.sigmoid(table[k])) for k in near}
                t = min(near, key=lambda k: abs(own - (abar[k] * data_variance + 1 - abar[k])))
                shifted += t != round(times[i])
            chosen.append(t)
        rows = []
        for image, t in zip(state, chosen, strict=True):
            p = denoise(image[None], process.level(table[t]))
            there = levels[i + 1]
            rows.append(there.alpha * p.x0 + there.sigma * p.eps)
        state = torch.cat(rows)
        torch.testing.assert_close(step.x_next, state, rtol=0, atol=1e-9)
        assert step.position.nominal is levels[i]
    assert shifted > 0


def test_time_shift_released_is_a_constant_shift_of_the_target():
    """Target index j + w//2 in every step but the first, while j is above the cut-off; the network is told i."""
    process, window, cutoff = Ddpm(), 10, 300
    levels = UniformTime(steps=10).levels(process)
    times = [round(float(process.time(level.logsnr))) for level in levels[:-1]]
    denoise = mixture(process)
    x = state = start(process, torch.randn(4, 1, 2, 2), levels[0])
    correction = TimeShift(variant="released", window=window, cutoff=cutoff)
    for i, step in enumerate(sample(denoise, Euler(), levels, x, corrections=(correction,))):
        there = levels[i + 1]
        if i > 0 and i + 1 < len(times) and times[i + 1] > cutoff:
            there = process.level(process.table()[times[i + 1] + window // 2])
        p = denoise(state, levels[i])
        state = there.alpha * p.x0 + there.sigma * p.eps
        torch.testing.assert_close(step.x_next, state, rtol=0, atol=1e-9)


@pytest.mark.parametrize("cutoff", [None, 1.0])
@pytest.mark.parametrize("process", [Edm(), Flow()], ids=lambda p: p.kind)
def test_time_shift_in_nats(process, cutoff):
    """released: half a window noisier in logsnr; paper: the level of 33 in the window whose variance is nearest."""
    levels = Karras(steps=10).levels(process) if process.kind == "edm" else UniformTime(steps=10).levels(process)
    window, position = 0.4, Position(4, levels, levels[4], levels[5])
    spared = cutoff is not None and float(levels[5].logsnr) >= cutoff
    moved = TimeShift(variant="released", unit="nats", window=window, cutoff=cutoff).move(
        torch.zeros(1), position, process
    )
    torch.testing.assert_close(moved.there.logsnr, levels[5].logsnr - (0.0 if spared else window / 2))
    assert moved.here is position.here
    for share in (-0.5, -0.1, 0.2, 0.5):
        aim = process.level(levels[4].logsnr + share * window)
        image = torch.tensor([1.0, -1.0], dtype=torch.float64).repeat(8).reshape(1, 1, 4, 4)
        x = image * (0.3 * aim.alpha**2 + aim.sigma**2).sqrt()  # its variance is the level's, exactly
        shift = TimeShift(unit="nats", window=window, cutoff=cutoff, data_variance=0.3)
        found = shift.move(x, position, process).here.logsnr
        kept = cutoff is not None and float(levels[4].logsnr) >= cutoff
        assert float((found - (levels[4].logsnr if kept else aim.logsnr)).abs().max()) <= window / 64 + 1e-9


@pytest.mark.parametrize(("step", "moves"), [(1, True), (8, False)])
def test_a_cutoff_in_nats_spares_the_clean_end(step, moves):
    """Levels at the cut-off and cleaner are left alone."""
    process = Edm()
    levels = Karras(steps=10).levels(process)
    shift = TimeShift(unit="nats", window=0.2, cutoff=float(levels[8].logsnr))
    position = Position(step, levels, levels[step], levels[step + 1])
    far = torch.full((1, 1, 2, 2), 50.0) * torch.tensor([1.0, -1.0]).repeat(2).reshape(1, 1, 2, 2)
    assert (shift.move(far, position, process) is not position) == moves


@pytest.mark.parametrize("variant", ["paper", "released"])
@pytest.mark.parametrize("process", [Vp(), Ddpm()], ids=lambda p: p.kind)
def test_a_cutoff_spares_each_image_by_itself(process, variant):
    """On grids that differ from image to image: a batch is its images, some beyond the cut-off and some before it."""
    logsnr = process.snap(torch.tensor([[-3.0, -1.0, 1.0, 3.0], [0.0, 2.0, 4.0, 6.0]], dtype=torch.float64)).mT
    unit, window, cutoff = ("index", 20, float(process.time(logsnr[1, 1]))) if process.kind == "ddpm" else (
        "nats", 0.5, 1.5)  # fmt: skip
    shift = TimeShift(variant=variant, unit=unit, window=window, cutoff=cutoff)
    levels = tuple(process.level(row) for row in logsnr)
    x = torch.randn(2, 1, 4, 4, dtype=torch.float64)
    for index in (1, 2):
        position = Position(index, levels, levels[index], levels[index + 1])
        both = shift.move(x, position, process)
        for k in range(2):
            alone = shift.move(x[k : k + 1], position.at(torch.tensor([k])), process)
            for one, other in ((alone.here, both.here), (alone.there, both.there)):
                torch.testing.assert_close(one.logsnr, other.logsnr[k : k + 1], rtol=0, atol=1e-12)
        moved = (both.here.logsnr - position.here.logsnr).abs() + (both.there.logsnr - position.there.logsnr).abs()
        assert moved[1] == 0
        assert moved[0] > 0 or index == 2


def test_the_released_shift_needs_no_room_at_the_clean_end():
    """Only the noisier edge of its window is looked up; the paper's variant needs both."""
    process = Ddpm()
    levels = UniformTime(steps=20).levels(process)
    last = round(float(process.time(levels[-2].logsnr)))
    window = 2 * (last + 3)
    position = Position(18, levels, levels[18], levels[19])
    moved = TimeShift(variant="released", window=window).move(torch.zeros(1), position, process)
    assert round(float(process.time(moved.there.logsnr))) == last + window // 2
    with pytest.raises(SnrkitError, match="leaves the table"):
        TimeShift(window=window).move(torch.zeros(1, 1, 2, 2), Position(19, levels, levels[19], levels[20]), process)


@pytest.mark.parametrize(
    ("process", "settings", "said"),
    [
        (Edm(), {"window": 4}, "no table; set unit: nats"),
        (Ddpm(), {"window": 400}, "leaves the table|reaches the next"),
        (Ddpm(), {"window": 120}, "reaches the next levels|leaves the table"),
        (Ddpm(), {"window": 10}, "leaves the table"),
        (Ddpm(), {"window": 400, "variant": "released"}, "reaches the next|leaves the table"),
        (Edm(), {"window": 9.0, "unit": "nats"}, "reaches the next levels"),
    ],
)
def test_a_window_outside_the_table_is_refused(process, settings, said):
    """Before sampling begins, with the reason."""
    grid = UniformTime(steps=10) if process.kind == "ddpm" else Karras(steps=10)
    sampler = Sampler(grid=grid, solver=Euler(), corrections=(TimeShift(**settings),))
    with pytest.raises(SnrkitError, match=said):
        dry_run(sampler, process, X0(), (1, 4, 4))


def test_x0_limits():
    """Clipping to [-1, 1]; dynamic thresholding as published: s = max(1, percentile of |x0|), clip, divide by s."""
    process = Edm()
    level, x = process.level(tensor(-3.0)), 3 * torch.randn(4, 1, 8, 8, dtype=torch.float64)
    plain = Wrapped(process, lambda s, lv, told, cond: from_x0(s, 0.6 * s, lv))
    p = plain(x, level)
    for correction in (ClipX0(), DynamicThreshold(percentile=0.9)):
        found = correction.wrap(plain, place_at(level))(x, level)
        torch.testing.assert_close(level.alpha * found.x0 + level.sigma * found.eps, x)
        assert float(found.x0.abs().max()) <= 1 + 1e-12
        if isinstance(correction, ClipX0):
            wanted = p.x0.clamp(-1, 1)
        else:
            s = np.maximum(np.quantile(p.x0.abs().flatten(1).numpy(), 0.9, axis=1), 1)[:, None, None, None]
            wanted = torch.from_numpy(np.clip(p.x0.numpy(), -s, s) / s)
        torch.testing.assert_close(found.x0, wanted)


def test_x0_rescale_brings_the_spread_of_each_image_to_the_forward_one():
    """share 1: the variance over the dimensions of every x0_hat is the given one and its mean is kept."""
    process = Edm()
    level, x = process.level(tensor(0.0)), torch.randn(4, 1, 4, 4, dtype=torch.float64)
    correction = X0Rescale(share=1.0).open(Around(process), (level,))
    plain = mixture(process, shape=(1, 4, 4))
    found = correction.wrap(plain, place_at(level))(x, level)
    torch.testing.assert_close(found.x0.flatten(1).var(1, correction=0), torch.full((4,), 0.5, dtype=torch.float64))
    torch.testing.assert_close(found.x0.mean((1, 2, 3)), plain(x, level).x0.mean((1, 2, 3)))
    torch.testing.assert_close(level.alpha * found.x0 + level.sigma * found.eps, x)


@pytest.mark.parametrize("variant", ["paper", "released"])
def test_time_shift_acts_through_unipcs_corrector(variant):
    """The corrector changes what the last step did, not where a correction moved the level: as large as without it."""
    process = Ddpm()
    levels = UniformTime(steps=20).levels(process)
    x = start(process, torch.randn(4, 1, 2, 2, generator=torch.Generator().manual_seed(0)), levels[0])
    shift = TimeShift(variant=variant, window=20, cutoff=150)
    moved = []
    for corrector in (False, True):
        solver = Unipc(corrector=corrector)
        ends = [run(solver, mixture(process), levels, x, corrections=c) for c in ((), (shift,))]
        moved.append(float((ends[1] - ends[0]).abs().max()))
    assert moved[1] > 0.5 * moved[0] > 0


def test_x0_rescale_is_neutral_where_every_spread_is_right():
    """At both of Heun's evaluations the spread aimed at is that of the level where the answer is read."""
    process, v, shape = Edm(), 0.25, (1, 64, 64)
    levels = Karras(steps=7).levels(process)
    noisy = levels[:-1]
    spreads = torch.stack([v**2 / (v + lv.sigma**2) for lv in noisy])
    correction = OpenedX0Rescale(1.0, torch.stack([lv.logsnr for lv in noisy]), spreads)
    denoise = gaussian_denoiser(process, 0.0, v, shape)
    x = start(process, torch.randn(8, *shape, generator=torch.Generator().manual_seed(0)), levels[0], v)
    for step in sample(denoise, Heun(), levels, x, corrections=(correction,)):
        for call in step.calls:
            wanted = spreads[[bool(call.level.logsnr == lv.logsnr) for lv in noisy].index(True)]
            found = call.prediction.x0.flatten(1).var(1, correction=0)
            torch.testing.assert_close(found, wanted.expand(8), rtol=1e-6, atol=0)


def test_a_constant_prediction_has_no_spread_to_rescale():
    """At pure noise x0_hat is the mean image: it is left alone, not divided by 0."""
    process = Flow()
    level = UniformTime(steps=4).levels(process)[0]
    correction = OpenedX0Rescale(1.0, level.logsnr[None], tensor([0.3]))
    flat = Wrapped(process, lambda s, lv, told, cond: Prediction(torch.zeros_like(s), s))
    found = correction.wrap(flat, place_at(level))(torch.randn(2, 1, 4, 4, dtype=torch.float64), level)
    assert torch.equal(found.x0, torch.zeros(2, 1, 4, 4, dtype=torch.float64))


@pytest.mark.parametrize("process", THREE.values(), ids=THREE)
@pytest.mark.parametrize("correction", ACTIVE.values(), ids=ACTIVE)
def test_a_grid_per_image_equals_a_shared_one_through_every_correction(process, correction):
    """Levels of shape (B,) give the same bits as levels of shape ()."""
    ready = open_with(
        Sampler(grid=Karras(steps=6), solver=Euler(), corrections=(correction,)), process, Around(process)
    )
    wide = tuple(process.level(level.logsnr.expand(3).clone()) for level in ready.levels)
    ends, cond = [], Cond(labels=torch.zeros(3, dtype=torch.int64))
    for levels in (ready.levels, wide):
        x = start(process, torch.linspace(-2, 2, 12).reshape(3, 1, 2, 2), ready.levels[0])
        for step in sample(knowing(process), ready.solver, levels, x, corrections=ready.corrections, cond=cond):
            x = step.x_next
        ends.append(x)
    assert torch.equal(*ends)


def test_a_gain_multiplies_every_state_and_the_image():
    """One step into the clean level is the prediction times the gain; two are as it is told by hand."""
    process = PROCESSES["edm"]
    denoise, levels = mixture(process), Karras(steps=2).levels(process)
    x = start(process, torch.randn(3, 1, 2, 2, dtype=torch.float64), levels[0])
    first = denoise(x, levels[0])
    middle = 1.1 * (first.x0 + levels[1].sigma * first.eps)
    found = run(Euler(), denoise, levels, x, corrections=[Gain(gain=0.1)])
    torch.testing.assert_close(found, 1.1 * denoise(middle, levels[1]).x0, rtol=1e-12, atol=0)


@pytest.mark.parametrize("wavelet", ["haar", "db2"])
@pytest.mark.parametrize("size", [(4, 6), (5, 8)], ids=["even", "odd"])
def test_bands_of_a_video_are_those_of_its_frames(wavelet, size):
    """Bit for bit, with sides that differ, and for a fitted table as for constants."""
    level = PROCESSES["flow"].level(tensor(0.5))
    x0, x_next = torch.randn(2, 2, 3, 5, *size, dtype=torch.float64)
    position = Position(0, (level, level, level), level, level)
    value = Dcw(low=0.1, high=-0.05, wavelet=wavelet)
    table = Dcw(schedule={"kind": "table"}, wavelet=wavelet).with_fit(GivenFit(((0.1, -0.05),)))
    for correction in (value, table):

        def after(x0, x_next, correction=correction):
            call = Call(level, Prediction(x0, torch.zeros_like(x0)))
            return correction.after(Step(position, x_next, (call,), x_next))

        frames = [after(x0[:, :, t], x_next[:, :, t]) for t in range(5)]
        torch.testing.assert_close(after(x0, x_next), torch.stack(frames, 2), rtol=0, atol=1e-15)
    with pytest.raises(SnrkitError, match=r"need images .* or videos"):
        value.after(Step(position, x0[0], (Call(level, Prediction(x0[0, :, :, 0], x0[0, :, :, 0])),), x0[0, :, :, 0]))


@pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES)
@given(k=st.floats(0.2, 5), spread=st.floats(0.1, 3), at=st.floats(-9, 9))
def test_score_rescaling_is_the_published_factor_of_the_score(process, k, spread, at):
    """score' = score (eta s^2 + 1)/(eta s^2/k + 1) with eta = alpha^2/sigma^2; the state equation holds."""
    level, x, denoise = process.level(tensor(at)), torch.randn(2, 1, 2, 2, dtype=torch.float64), mixture(process)
    p, found = denoise(x, level), ScoreRescaling(k=k, spread=spread).wrap(denoise, place_at(level))(x, level)
    eta = math.exp(at)
    score, rescaled = -p.eps / level.sigma, -found.eps / level.sigma
    wanted = score * ((eta * spread**2 + 1) / (eta * spread**2 / k + 1))
    torch.testing.assert_close(rescaled, wanted, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(level.alpha * found.x0 + level.sigma * found.eps, x, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES)
@given(k=st.floats(0.2, 5), at=st.floats(-9, 9))
def test_score_rescaling_of_gaussian_data_is_exact(process, k, at):
    """On N(m, s^2), with that s, it is the exact denoiser of N(m, s^2/k), at every level."""
    level, x = process.level(tensor(at)), torch.randn(3, 1, 1, 1, dtype=torch.float64)
    correction = ScoreRescaling(k=k, spread=math.sqrt(VARIANCE))
    found = correction.wrap(gaussian(process), place_at(level))(x, level)
    wanted = gaussian(process, variance=VARIANCE / k)(x, level)
    torch.testing.assert_close(found.x0, wanted.x0, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(found.eps, wanted.eps, rtol=1e-9, atol=1e-9)


def test_score_rescaling_is_defined_at_pure_noise():
    """At alpha = 0 it changes nothing, and a grid that starts there is walked."""
    process = Flow()
    level, x = UniformTime(steps=4).levels(process)[0], torch.randn(2, 1, 2, 2, dtype=torch.float64)
    assert float(level.alpha) == 0
    p, found = mixture(process)(x, level), ScoreRescaling(k=2).wrap(mixture(process), place_at(level))(x, level)
    torch.testing.assert_close(found.x0, p.x0, rtol=0, atol=0)
    torch.testing.assert_close(found.eps, p.eps, rtol=0, atol=0)
