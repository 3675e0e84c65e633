"""Corrections: neutral elements, closed forms, and the zero-error control."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from snrkit.corrections import ClassifierFreeGuidance, Dcw, EpsilonScaling
from snrkit.data.toy import gaussian_denoiser
from snrkit.errors import SnrkitError
from snrkit.grid import Karras, UniformTime
from snrkit.level import level_of
from snrkit.prediction import Cond, Prediction, Wrapped
from snrkit.process import Edm, Flow
from snrkit.sample import sample, start
from snrkit.solvers import Euler, Heun
from tests.exact import PROCESSES, THREE, mixture, run, tensor
from tests.test_solvers import ALL

NEUTRAL = {"epsilon_scaling": EpsilonScaling(scale=1.0), "dcw": Dcw(scale=0.0)}
ACTIVE = {"epsilon_scaling": EpsilonScaling(scale=1.01), "dcw": Dcw(scale=0.01)}


def both(process, solver, correction):
    """(without, with) a correction, from the same state and noise."""
    levels = Karras(steps=6).levels(process)
    x = start(process, torch.randn(3, 1, 2, 2), levels[0])
    ends = []
    for corrections in ((), (correction,)):
        draws = torch.Generator().manual_seed(4)
        noise = lambda s, g=draws: torch.randn(s.shape, dtype=s.dtype, generator=g)  # noqa: E731
        ends.append(run(solver, mixture(process), levels, x, noise=noise, corrections=corrections))
    return ends


@pytest.mark.parametrize("process", THREE.values(), ids=THREE)
@pytest.mark.parametrize("solver", ALL.values(), ids=ALL)
@pytest.mark.parametrize("name", NEUTRAL)
def test_neutral_changes_no_bit_and_active_changes_the_sample(process, solver, name):
    """The neutral element, and its converse, for every correction with every solver."""
    plain, neutral = both(process, solver, NEUTRAL[name])
    assert torch.equal(plain, neutral)
    plain, active = both(process, solver, ACTIVE[name])
    assert not torch.allclose(plain, active, rtol=0, atol=1e-6)


@pytest.mark.parametrize("scaling", ["ve", "flow"])
@given(scale=st.floats(-0.2, 0.2), here=st.floats(-6, 3), ahead=st.floats(0.1, 4))
def test_pixel_dcw_is_an_euler_step_to_a_noisier_level(scaling, scale, here, ahead):
    """x' + s (x' - x0) equals the Euler step of sigma to (1 + s) sigma' at alpha', in ve and flow, to 1e-12."""
    process = {"ve": Edm(), "flow": Flow()}[scaling]
    levels = (level_of(tensor(here), scaling), level_of(tensor(here + ahead), scaling))
    denoise, x = mixture(process), torch.randn(2, 1, 2, 2, dtype=torch.float64)
    (step,) = sample(denoise, Euler(), levels, x, corrections=(Dcw(scale=scale),))
    p, there = step.calls[0].prediction, levels[1]
    if scaling == "ve":
        closed = p.x0 + (1 + scale) * there.sigma * p.eps
    else:  # sigma' -> (1 + s) sigma' and alpha' = 1 - sigma' follows
        sigma = (1 + scale) * there.sigma
        closed = (1 - sigma) * p.x0 + sigma * p.eps
    torch.testing.assert_close(step.x_next, closed, rtol=1e-12, atol=1e-12)


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
        here, there = step.place.here, step.place.there
        scale = float((here.sigma / there.sigma - 1) * (1 - 1 / b))
        (matched,) = sample(denoise, Euler(), (here, there), state, corrections=(Dcw(scale=scale),))
        torch.testing.assert_close(matched.x_next, step.x_next, rtol=1e-12, atol=1e-12)
        state = step.x_next


@pytest.mark.parametrize("solver", ALL.values(), ids=ALL)
def test_dcw_leaves_the_last_step_alone(solver):
    """Into the clean level x' is x0 itself, so the difference is exactly zero and nothing is done."""
    process = Edm()
    levels = Karras(steps=4).levels(process)
    steps = list(sample(mixture(process), solver, levels, start(process, torch.randn(2, 1, 2, 2), levels[0]),
                        corrections=(Dcw(scale=0.5),), noise=torch.randn_like))  # fmt: skip
    assert torch.equal(steps[-1].x_next, steps[-1].calls[-1].prediction.x0)


def test_epsilon_scaling_keeps_the_state_equation():
    """The corrected belief still explains the state."""
    process, x = Flow(), torch.randn(3, 1, 2, 2, dtype=torch.float64)
    level = process.level(tensor(0.5))
    denoise = EpsilonScaling(scale=1.1).wrap(mixture(process), place_at(level))
    p = denoise(x, level)
    torch.testing.assert_close(level.alpha * p.x0 + level.sigma * p.eps, x)


def place_at(level):
    from snrkit.step import Place

    return Place(0, (level, level), level, level)


def test_epsilon_scaling_at_pure_noise_is_refused():
    """Its x0 would be x0 + inf * eps."""
    levels = UniformTime(steps=4).levels(Flow())
    with pytest.raises(SnrkitError, match="undefined at alpha = 0"):
        run(Euler(), mixture(Flow()), levels, torch.zeros(1, 1, 2, 2), corrections=(EpsilonScaling(scale=1.1),))


def labelled(process):
    """A denoiser whose belief depends on the label; -1 is no label."""
    parts = {label: mixture(process, seed=label + 10) for label in (-1, 0, 1)}

    def answer(x, level, told, cond):
        answers = [parts[int(label)](x[i : i + 1], level) for i, label in enumerate(cond.labels)]
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
    found = crossing(lambda v: Dcw(scale=v), solver, steps, 0.25, -0.1, 0.1)
    assert found == pytest.approx(scale, abs=5.1e-5)
