"""Weightings against the forms that were published for each target."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from snrkit.diffusion.denoiser import NoPrecondition
from snrkit.diffusion.level import level_of
from snrkit.diffusion.prediction import X0, Eps, FlowVelocity, Score, V
from snrkit.training.objective import output_weight
from snrkit.training.weighting import (
    P2,
    CosMap,
    EdmWeighting,
    Elbo,
    LogSnr,
    MaxSnr,
    MinSnr,
    RawScore,
    SigmaSqrt,
    Sigmoid,
    Simple,
    SnrClip,
    SnrPlusOne,
    SnrPower,
    SoftMinSnr,
    Velocity,
)
from tests.exact import PROCESSES, tensor

S = 0.5  # of the data
DENSITY = 0.3
CASES = {  # the factor of the loss of x0, as published or derived there, by snr
    "simple": (Simple(), lambda snr: snr),
    "constant": (SnrPower(power=0), lambda snr: 1),
    "snr_power": (SnrPower(power=0.5), lambda snr: snr**0.5),
    "snr_plus_one": (SnrPlusOne(), lambda snr: snr + 1),
    "log_snr": (LogSnr(), math.log1p),
    "min_snr": (MinSnr(gamma=5), lambda snr: min(snr, 5)),
    "soft_min_snr": (SoftMinSnr(gamma=4), lambda snr: 4 * snr / (snr + 4)),
    "max_snr": (MaxSnr(tau=1), lambda snr: max(snr, 1)),
    "snr_clip": (SnrClip(floor=0.1, ceiling=5), lambda snr: min(max(snr, 0.1), 5)),
    "p2": (P2(k=1, gamma=0.5), lambda snr: snr / (1 + snr) ** 0.5),
    "edm": (EdmWeighting(), lambda snr: snr + 1 / S**2),
    "elbo": (Elbo(), lambda snr: snr / DENSITY),
    "sigmoid": (Sigmoid(bias=-2, over_density=False), lambda snr: math.exp(-2) / (1 + math.exp(-2) / snr)),
    "sigmoid over density": (Sigmoid(bias=1), lambda snr: math.exp(1) / (1 + math.exp(1) / snr) / DENSITY),
}
OF_X0 = {  # what a target's squared error is of x0's
    "x0": (X0(), "vp", lambda snr: 1),
    "eps": (Eps(), "vp", lambda snr: snr),
    "v": (V(), "vp", lambda snr: snr + 1),
    "flow": (FlowVelocity(), "flow", lambda snr: (1 + snr**0.5) ** 2),
    "score": (Score(), "vp", lambda snr: snr * (1 + snr)),
}


def weight(weighting, logsnr, target=None, scaling="vp"):
    """The factor of the loss of a target; of eps by default."""
    level, process = level_of(tensor(logsnr), scaling), PROCESSES["flow" if scaling == "flow" else "vp"]
    return float(
        output_weight(
            level, lambda: tensor(DENSITY), process=process, target=target or Eps(),
            precondition=NoPrecondition(), weighting=weighting, sigma_data=S,
        )
    )  # fmt: skip


@pytest.mark.parametrize("name", CASES)
@given(logsnr=st.floats(-9, 9))
def test_every_weighting_has_its_published_form_on_every_target(name, logsnr):
    """The factor on x0, over what the target's error is of x0's: x0 1, eps snr, v snr + 1, flow (1 + root)^2."""
    weighting, on_x0 = CASES[name]
    snr = math.exp(logsnr)
    for target, scaling, error in OF_X0.values():
        assert weight(weighting, logsnr, target, scaling) == pytest.approx(on_x0(snr) / error(snr), rel=1e-9)


@given(t=st.floats(0.01, 0.99))
def test_flow_weightings_have_their_published_form_on_velocity(t):
    """1/t^2 and 2/(pi (1 - 2t + 2t^2)) on eps - x0 (Esser et al. 2024)."""
    logsnr = 2 * math.log((1 - t) / t)
    assert weight(SigmaSqrt(), logsnr, FlowVelocity(), "flow") == pytest.approx(t**-2, rel=1e-9)
    published = 2 / (math.pi * (1 - 2 * t + 2 * t**2))
    assert weight(Velocity(), logsnr, FlowVelocity(), "flow") == pytest.approx(1, rel=1e-9)
    assert weight(CosMap(), logsnr, FlowVelocity(), "flow") == pytest.approx(published, rel=1e-9)


@pytest.mark.parametrize("name", ["min_snr", "soft_min_snr", "log_snr", "simple"])
def test_weights_that_fall_with_snr_are_safe_at_none(name):
    """At snr = 0 the factor on v is 0 and that on eps at most 1; nothing is 0/0 (Lin et al. 2024 meet min-SNR)."""
    weighting, _ = CASES[name]
    assert weight(weighting, -math.inf, V()) == pytest.approx(0, abs=1e-15)
    assert weighting.weight(level_of(tensor(-40.0), "vp"), lambda: tensor(1.0), S) == pytest.approx(1, rel=1e-9)


def test_neighbours_in_the_family():
    """snr_power 1 is simple; max_snr and min_snr part the line; a wide clip is simple; a soft minimum is below both."""
    logsnr = torch.linspace(-9, 9, 19, dtype=torch.float64)
    level, one = level_of(logsnr, "vp"), torch.ones(19, dtype=torch.float64)

    def of(weighting):
        return weighting.weight(level, lambda: one, S)

    torch.testing.assert_close(of(SnrPower(power=1)), one)
    torch.testing.assert_close(of(MaxSnr(tau=2)) * of(MinSnr(gamma=2)), of(SnrPower(power=0)) * 2)
    torch.testing.assert_close(of(SnrClip(floor=1e-9, ceiling=1e9)), one)
    assert (of(SoftMinSnr(gamma=3)) < torch.minimum(one, 3 / logsnr.exp())).all()
    torch.testing.assert_close(of(P2(gamma=0)), one)
    torch.testing.assert_close(of(P2(gamma=1)), of(SoftMinSnr(gamma=1)))


def test_sigmoid_has_two_forms():
    """sigmoid(b - logsnr) on eps is e^b sigmoid(logsnr - b) on x0."""
    logsnr, b = torch.linspace(-9, 9, 19, dtype=torch.float64), 1.3
    ours = Sigmoid(bias=b, over_density=False).weight(level_of(logsnr, "vp"), lambda: logsnr, S)
    torch.testing.assert_close(ours * logsnr.exp(), math.exp(b) * torch.sigmoid(logsnr - b))


def test_compute_snr_of_diffusers_gives_the_same_min_snr():
    """min(snr, 5)/snr on eps and min(snr, 5)/(snr + 1) on v, by diffusers' compute_snr on its own table."""
    diffusers = pytest.importorskip("diffusers")
    training_utils = pytest.importorskip("diffusers.training_utils")
    scheduler = diffusers.DDPMScheduler(1000)
    index = torch.arange(0, 1000, 37)
    theirs = training_utils.compute_snr(scheduler, index).double()
    logsnr = PROCESSES["ddpm"].logsnr(index)
    for target, factor in ((Eps(), theirs), (V(), theirs + 1)):
        ours = [weight(MinSnr(), float(value), target) for value in logsnr]
        torch.testing.assert_close(torch.tensor(ours), (theirs.clamp(max=5) / factor).float(), rtol=2e-4, atol=0)


def test_effective_weightings_of_the_field():
    """p(logsnr) w_eps up to a constant: cosine eps sech, cosine v and uniform flow e^(-logsnr/2), and others."""
    from snrkit.training.level_samplers import LogNormal, UniformTime

    logsnr = torch.linspace(-6, 6, 25, dtype=torch.float64)

    def product(levels, process, weighting):
        level, density = PROCESSES[process].level(logsnr), levels.density(logsnr, PROCESSES[process])
        return density * weighting.weight(level, lambda: density, S)

    def alike(found, expected):
        ratio = found / expected
        torch.testing.assert_close(ratio, ratio[:1].expand_as(ratio), rtol=1e-6, atol=0)

    alike(product(UniformTime(), "vp", Simple()), 1 / torch.cosh(logsnr / 2))
    plain_v = SnrPower(power=0).weight(level_of(logsnr, "vp"), lambda: logsnr, S) * (1 + logsnr.exp())  # 1 on v
    alike(UniformTime().density(logsnr, PROCESSES["vp"]) * plain_v, torch.exp(-logsnr / 2))
    plain_flow = (1 + (logsnr / 2).exp()) ** 2 / logsnr.exp()  # 1 on flow's velocity
    alike(UniformTime().density(logsnr, PROCESSES["flow"]) * plain_flow, torch.exp(-logsnr / 2))
    normal = torch.exp(-((logsnr - 2.4) ** 2) / (2 * 2.4**2))
    alike(product(LogNormal(), "edm", EdmWeighting()), normal * (torch.exp(-logsnr) + 0.25))
    alike(product(UniformTime(), "vp", MinSnr()), (5 * torch.exp(-logsnr)).clamp(max=1) / torch.cosh(logsnr / 2))
    alike(product(UniformTime(), "vp", Elbo()), torch.ones_like(logsnr))
    for gamma in (0.5, 1.0):
        expected = 1 / torch.cosh(logsnr / 2) / (1 + logsnr.exp()) ** gamma
        alike(product(UniformTime(), "vp", P2(gamma=gamma)), expected)


def test_published_defaults():
    """Min-SNR 5, soft min-SNR 4 = 1/0.5^2, truncated SNR 1, P2 k 1 and gamma 1, SD3's mode 1.29, AGC 0.01 and 1e-3."""
    from snrkit.training.clipping import Adaptive
    from snrkit.training.level_samplers import LogNormal, Mode

    assert (MinSnr().gamma, SoftMinSnr().gamma, MaxSnr().tau) == (5, 4, 1)
    assert (P2().k, P2().gamma, Mode().scale) == (1, 1, 1.29)
    assert (Adaptive().ratio, Adaptive().floor) == (0.01, 1e-3)
    assert (LogNormal().mean, LogNormal().std) == (-1.2, 1.2)


@pytest.mark.parametrize("scaling", ["vp", "flow"])
@given(logsnr=st.floats(-9, 9))
def test_the_raw_score_has_the_weight_1_in_the_process_s_own_scaling(scaling, logsnr):
    """On the score itself, which the network then learns as it is; on eps 1/sigma^2."""
    assert weight(RawScore(), logsnr, Score(), scaling) == pytest.approx(1, rel=1e-9)
    sigma = float(level_of(tensor(logsnr), scaling).sigma)
    assert weight(RawScore(), logsnr, Eps(), scaling) == pytest.approx(sigma**-2, rel=1e-9)
