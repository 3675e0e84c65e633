"""Level samplers: each draws from the density that it states."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from snrkit.base.errors import SnrkitError
from snrkit.diffusion.process import Edm, Flow, InterpolatedCosine, LinearLogsnr, Vp
from snrkit.training.level_samplers import (
    BetaTime,
    Cauchy,
    CosineLevels,
    Laplace,
    LogitNormal,
    LogNormal,
    LogUniform,
    Mode,
    NormalTime,
    UniformSigma,
    UniformTime,
)
from tests.exact import PROCESSES, tensor

SHIFTED = {
    **{name: process for name, process in PROCESSES.items() if name in ("edm", "flow", "vp")},
    "flow shifted": Flow(logsnr_shift=-2 * math.log(3)),
    "vp shifted": Vp(logsnr_shift=-2.8),
    "vp interpolated": Vp(schedule=InterpolatedCosine(clean=-1.4, noisy=-5.5)),
    "vp linear": Vp(schedule=LinearLogsnr(), logsnr_min=-5, logsnr_max=13.3),
}
SAMPLERS = [
    UniformTime(),
    LogNormal(),
    LogNormal(mean=-0.4, std=1.0),
    LogitNormal(mean=0.3, std=0.8),
    NormalTime(),
    NormalTime(mean=0.9, std=0.4),
    BetaTime(),
    BetaTime(alpha=1.5, beta=1.8),
    Mode(),
    Mode(scale=-0.7),
    UniformSigma(),
    LogUniform(),
    Laplace(mean=-1, scale=0.75),
    Laplace(scale=6),
    Cauchy(),
    CosineLevels(mean=1, sharpness=0.5),
]
UNIFORMS = torch.rand(20_000, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
AXIS = torch.linspace(-60, 60, 600_001, dtype=torch.float64)


@pytest.mark.parametrize("process", SHIFTED.values(), ids=SHIFTED)
@pytest.mark.parametrize("sampler", SAMPLERS, ids=str)
def test_draws_follow_the_stated_density(sampler, process):
    """Kolmogorov-Smirnov of inverse-CDF draws against the integral of the density, which is 1."""
    drawn = sampler.logsnr(UNIFORMS, process).numpy()
    density = sampler.density(AXIS, process)
    cdf = torch.cat([torch.zeros(1), torch.cumulative_trapezoid(density, AXIS)])
    assert float(cdf[-1]) == pytest.approx(1, abs=2e-3)
    assert stats.kstest(drawn, lambda v: np.interp(v, AXIS.numpy(), cdf.numpy())).pvalue > 1e-3


@pytest.mark.parametrize("sampler", SAMPLERS, ids=str)
def test_draws_on_a_table_follow_the_stated_density(sampler):
    """Between entries, where one entry's cell ends, their share is the density's integral: Kolmogorov-Smirnov there."""
    process = PROCESSES["ddpm"]
    table = process.table()
    ends = (table[1:] + table[:-1]) / 2
    drawn = process.snap(sampler.logsnr(UNIFORMS, process))
    density = sampler.density(AXIS, process)
    cdf = torch.cat([torch.zeros(1), torch.cumulative_trapezoid(density, AXIS)])
    assert float(cdf[-1]) == pytest.approx(1, abs=2e-3)
    below = (drawn[:, None] < ends).double().mean(0).numpy()
    gap = np.abs(below - np.interp(ends.numpy(), AXIS.numpy(), cdf.numpy())).max()
    assert gap < stats.kstwo.isf(1e-3, len(drawn))


@pytest.mark.parametrize("sampler", SAMPLERS, ids=str)
def test_small_uniforms_are_clean(sampler):
    """logsnr falls as u rises."""
    u = torch.linspace(1e-6, 1 - 1e-6, 501, dtype=torch.float64)
    for process in SHIFTED.values():
        assert (sampler.logsnr(u, process).diff() < 1e-12).all()


def test_uniform_time_on_a_table_has_unit_mass():
    """The density of a table times the width of each entry sums to 1."""
    process = PROCESSES["ddpm"]
    table = process.table()
    width = torch.cat([table[:1] - table[1:2], (table[:-2] - table[2:]) / 2, table[-2:-1] - table[-1:]])
    assert float((UniformTime().density(table, process) * width).sum()) == pytest.approx(1, rel=1e-9)


def test_normal_time_on_a_table_is_the_normal_over_its_indices():
    """Draws of an index fall in it as often as the truncated normal's mass there says."""
    process = PROCESSES["ddpm"]
    index = process.time(process.snap(NormalTime().logsnr((torch.arange(10**5) + 0.5) / 10**5, process)))
    share = torch.histc(index, bins=10, min=-0.5, max=process.steps - 0.5) / 10**5
    edges = stats.truncnorm.cdf(np.linspace(0, 1, 11), -2.5, 2.5, loc=0.5, scale=0.2)
    torch.testing.assert_close(share, torch.from_numpy(np.diff(edges)), rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("sampler", "process", "quantiles"),
    [
        (UniformTime(), "vp", (-5.1, 0, 5.1)),
        (Laplace(), "flow", (-1.15, 0, 1.15)),
        (CosineLevels(), "vp", (-5.1, 0, 5.1)),
        (LogNormal(), "edm", (-1.5, 2.4, 6.3)),
        (LogNormal(mean=-0.4, std=1.0), "edm", (-2.5, 0.8, 4.1)),
        (LogitNormal(), "flow", (-3.3, 0, 3.3)),
        (UniformTime(), "flow", (-5.9, 0, 5.9)),
    ],
    ids=str,
)
def test_quantiles_of_the_field(sampler, process, quantiles):
    """logsnr at 5, 50 and 95 % of what is trained."""
    found = sampler.logsnr(torch.tensor([0.95, 0.5, 0.05]), PROCESSES[process])
    torch.testing.assert_close(found, torch.tensor(quantiles).double(), rtol=0, atol=0.06)


def test_ends_of_vdm():
    """gamma from -13.3 to 5: variances 1.7e-6 at the clean end and 6.7e-3 of the image at the noisy one."""
    process = Vp(schedule=LinearLogsnr(), logsnr_min=-5, logsnr_max=13.3)
    clean, noisy = (process.level(torch.tensor(end, dtype=torch.float64)) for end in reversed(process.bounds))
    assert float(clean.sigma**2) == pytest.approx(1.7e-6, rel=0.02)
    assert float(noisy.alpha**2) == pytest.approx(6.7e-3, rel=0.01)


def test_cauchy_without_bounds_in_sight_has_its_own_quantiles():
    """-6.3, 0 and 6.3 at 5, 50 and 95 %; bounds of +-12 take them in to 4.6."""
    u = torch.tensor([0.95, 0.5, 0.05])
    wide = Cauchy().logsnr(u, Flow(logsnr_min=-1e6, logsnr_max=1e6))
    torch.testing.assert_close(wide, torch.tensor([-6.3, 0, 6.3]).double(), rtol=0, atol=0.06)
    assert (Cauchy().logsnr(u, Flow()).abs() < 5).all()


def test_lognormal_is_edms_and_logit_normal_its_twin():
    """ln sigma ~ N(-1.2, 1.2^2) is logsnr ~ N(2.4, 2.4^2); logit t ~ N(m, s^2) is the same thing on flow."""
    u = (torch.arange(10_000, dtype=torch.float64) + 0.5) / 10_000
    drawn = LogNormal().logsnr(u, PROCESSES["edm"])
    assert (float(drawn.mean()), float(drawn.std())) == pytest.approx((2.4, 2.4), abs=2e-3)
    logsnr = LogitNormal(mean=0.4, std=0.7).logsnr(u, PROCESSES["flow"])
    t = PROCESSES["flow"].time(logsnr)
    z = (torch.logit(t) - 0.4) / 0.7
    torch.testing.assert_close(z, torch.special.ndtri(u), rtol=0, atol=1e-9)
    assert torch.equal(logsnr, LogNormal(mean=0.4, std=0.7).logsnr(u, PROCESSES["flow"]))
    shifted = Flow(logsnr_shift=-2 * math.log(3))  # Esser et al. 2024 draw t, then shift it
    moved = shifted.time(LogitNormal(mean=0.4, std=0.7).logsnr(u, shifted))
    torch.testing.assert_close(moved, 3 * t / (1 + 2 * t), rtol=1e-9, atol=0)
    assert shifted.bounds == pytest.approx((-12 - 2 * math.log(3), 12 - 2 * math.log(3)))


def test_levels_outside_the_bounds_are_refused():
    """A distribution that has hardly any mass between a process's bounds is said, not drawn at their edge."""
    with pytest.raises(SnrkitError, match="hardly any"):
        Laplace(mean=60).logsnr(UNIFORMS, PROCESSES["edm"])


def test_mode_and_logit_normal_equal_diffusers():
    """t = 1 - u - s (cos^2(pi u/2) - 1 + u) of diffusers' compute_density_for_timestep_sampling, by quantiles."""
    utils = pytest.importorskip("diffusers.training_utils")
    drawn = {
        kind: utils.compute_density_for_timestep_sampling(
            kind, 200_000, logit_mean=0.2, logit_std=1.1, mode_scale=1.29,
            generator=torch.Generator().manual_seed(1),
        )
        for kind in ("mode", "logit_normal")
    }  # fmt: skip
    flow, q = PROCESSES["flow"], torch.linspace(0.05, 0.95, 19, dtype=torch.float64)
    for kind, sampler in (("mode", Mode(scale=1.29)), ("logit_normal", LogitNormal(mean=0.2, std=1.1))):
        ours = flow.time(sampler.logsnr(q, flow))
        torch.testing.assert_close(ours, drawn[kind].double().quantile(q), rtol=0, atol=6e-3)


def test_mode_prefers_the_middle_and_its_opposite_the_ends():
    """Positive scales raise the density half-way in time, negative ones lower it; 0 is uniform."""
    flow, middle = PROCESSES["flow"], tensor(0.0)
    plain = UniformTime().density(middle, flow)
    assert Mode(scale=1).density(middle, flow) > plain > Mode(scale=-0.5).density(middle, flow)
    torch.testing.assert_close(Mode(scale=0).density(AXIS[::1000], flow), UniformTime().density(AXIS[::1000], flow))


@given(t=st.floats(0.01, 0.99), shift=st.floats(0.3, 6))
def test_one_shift_serves_flow_resolution_and_input_scaling(t, shift):
    """t' = s t/(1 + (s-1) t) adds -2 ln s; input scaling b adds 2 ln b; s = D/d is simple diffusion's 2 ln(d/D)."""
    moved = shift * t / (1 + (shift - 1) * t)
    flow = Flow(logsnr_shift=-2 * math.log(shift))
    assert float(flow.time(flow.draw(tensor(t)))) == pytest.approx(moved, rel=1e-9)
    assert float(flow.fraction(flow.draw(tensor(t)))) == pytest.approx(t, rel=1e-9)
    scaled = Vp(logsnr_shift=2 * math.log(1 / shift))
    plain = Vp().level(Vp().logsnr(tensor(t)))
    expected = (plain.alpha / shift / plain.sigma) ** 2
    assert float(scaled.logsnr(tensor(t)).exp()) == pytest.approx(float(expected), rel=1e-9)


def test_interpolated_cosine_has_its_ends():
    """512 pixels, references 32 (noisy end) and 256 (clean end): from 13.6 down to -20.5."""
    process = Vp(schedule=InterpolatedCosine(clean=2 * math.log(256 / 512), noisy=2 * math.log(32 / 512)))
    assert process.bounds == pytest.approx((-20.5, 13.6), abs=0.06)
    t = torch.linspace(0, 1, 1001, dtype=torch.float64)
    torch.testing.assert_close(process.time(process.logsnr(t)), t, rtol=0, atol=1e-12)


def test_schedules_state_their_slope():
    """slope is the derivative of logsnr in t, by autograd."""
    for process in SHIFTED.values():
        if isinstance(process, Vp):
            t = torch.linspace(0.01, 0.99, 99, dtype=torch.float64, requires_grad=True)
            (slope,) = torch.autograd.grad(process.logsnr(t).sum(), t)
            ends = process.logsnr_min, process.logsnr_max
            torch.testing.assert_close(process.schedule.slope(t.detach(), *ends), slope, rtol=1e-9, atol=0)


def test_a_schedule_that_would_rise_is_refused():
    """Ends that cross, or shifts that do."""
    with pytest.raises(ValueError, match="would rise"):
        Vp(schedule=InterpolatedCosine(clean=0, noisy=7))
    with pytest.raises(ValueError, match="must be below"):
        Vp(logsnr_min=3, logsnr_max=1)


def test_shares_of_levels_above_and_between():
    """log-normal spends 0.18 % above sigma 10 and 66 % in [.1, 1]; log-uniform 20 and 22 %; uniform 87.5 % above 10."""
    u = (torch.arange(10**6, dtype=torch.float64) + 0.5) / 10**6
    shares = {}
    for name, sampler in (("normal", LogNormal()), ("log", LogUniform()), ("uniform", UniformSigma())):
        sigma = torch.exp(-sampler.logsnr(u, Edm()) / 2)
        shares[name] = [float((sigma > 10).double().mean()), float(((sigma > 0.1) & (sigma < 1)).double().mean())]
    assert shares["normal"][0] == pytest.approx(0.0018, rel=0.05)
    assert shares["normal"][1] == pytest.approx(0.66, abs=5e-3)
    assert shares["log"] == pytest.approx([0.20, 0.22], abs=5e-3)
    assert shares["uniform"][0] == pytest.approx(0.875, abs=1e-3)
