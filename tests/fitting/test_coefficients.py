"""Coefficients by flow: exact where the answer is known, covered by their intervals, and best by sliced distances."""

import math

import pytest
import torch

from snrkit.data.toy import MixtureDenoiser
from snrkit.diffusion.process import Edm
from snrkit.fitting.coefficients import by_flow
from snrkit.sampling.corrections import Dcw, EpsilonScaling
from snrkit.sampling.flow import fine_flow, rms
from snrkit.sampling.grid import Karras, UniformLogsnr
from snrkit.sampling.sample import start
from snrkit.sampling.solvers import Euler, Heun
from snrkit.sampling.step import Range
from snrkit.shift.bootstrap import Bootstrap
from snrkit.shift.control import solve_for
from tests.exact import THREE, gaussian, run

BOOT = Bootstrap(200, 0.95, 0)
WIDE = Range(0.0, -1.0, 1.0, coarse=0.01, fine=0.001)


def first(process, levels, shape=(1, 2, 2), noises=64, seed=3):
    draws = torch.Generator().manual_seed(seed)
    return start(process, torch.randn(noises, *shape, generator=draws, dtype=torch.float64), levels[0])


def test_a_linear_trajectory_is_solved_by_least_squares():
    """Two coefficients that move the clean states linearly: the plain solution, whatever the start of the search."""
    draws = torch.Generator().manual_seed(1)
    base, one, two, flow = (torch.randn(40, 6, generator=draws, dtype=torch.float64) for _ in range(4))
    flow = base + 0.3 * one - 0.2 * two + 0.01 * flow
    found = by_flow(lambda v: base + v[0] * one + v[1] * two, flow, [WIDE, WIDE], BOOT)
    wanted = torch.linalg.lstsq(
        torch.stack([one.flatten(), two.flatten()], 1), (flow - base).flatten()[:, None]
    ).solution
    assert [number.value for number in found.values] == pytest.approx(wanted[:, 0].tolist(), abs=1e-9)
    assert not found.flat
    assert found.distance == pytest.approx(rms(base + 0.3 * one - 0.2 * two - flow), rel=1e-2)
    assert all(min(p.distance for p in curve) >= found.distance - 1e-12 for curve in found.curves)


def test_the_interval_covers_the_best_of_many_first_states():
    """40 first states of a population whose best coefficient is .1: their 95 % intervals hold it in most repeats."""
    held = 0
    for repeat in range(100):
        draws = torch.Generator().manual_seed(repeat)
        slope = 1 + torch.randn(40, 3, generator=draws, dtype=torch.float64) ** 2
        flow = 0.1 * slope + 0.3 * torch.randn(40, 3, generator=draws, dtype=torch.float64)
        (number,) = by_flow(lambda v, s=slope: v[0] * s, flow, [WIDE], BOOT).values
        held += number.low <= 0.1 <= number.high
    assert 88 <= held <= 99


def test_the_error_of_the_flow_widens_the_interval():
    """By what a wrong flow of that rms moves the coefficient, where the slope is the same everywhere: exactly it."""
    slope = torch.full((30, 2), 2.0, dtype=torch.float64)
    plain, wide = (by_flow(lambda v: v[0] * slope, 0.1 * slope, [WIDE], BOOT, error).values[0] for error in (0, 0.02))
    assert plain.high - plain.low < 1e-9
    assert wide.high - wide.value == pytest.approx(0.02 / 2.0)
    shifted = by_flow(lambda v: v[0] * slope, 0.1 * slope + 0.02, [WIDE], BOOT).values[0].value
    assert shifted == pytest.approx(wide.high)


def test_what_moves_nothing_is_flat():
    """And stays neutral, with the interval of nothing known."""
    states = torch.randn(30, 4, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    found = by_flow(lambda v: states, states + 0.1, [WIDE], BOOT)
    assert found.flat
    assert found.values[0].value == 0.0


@pytest.mark.parametrize("process", THREE.values(), ids=lambda p: p.kind)
@pytest.mark.parametrize(
    ("make", "span"),
    [(lambda v: Dcw(pixel=v), WIDE), (lambda v: EpsilonScaling(scale=v), Range(1.0, 0.5, 1.5, 0.005, 0.001))],
    ids=["dcw", "epsilon_scaling"],
)
def test_on_gaussian_data_of_one_variance_it_is_the_gaussian_prediction(process, make, span):
    """There every state is scaled by one number, so that the flow is met exactly where the variance is."""
    levels = UniformLogsnr(steps=8, logsnr_min=-7, logsnr_max=7).levels(process)
    denoise, x = gaussian(process, 0.0, 0.3, (1, 2, 2)), first(process, levels)
    flow = fine_flow(denoise, levels, x)
    walk = lambda v: run(Euler(), denoise, levels, x, corrections=[make(*v)])  # noqa: E731
    found = by_flow(walk, flow.states[-1], [span], BOOT, flow.error)
    power = flow.states[-1].square().sum()
    wanted = solve_for(lambda v: float(walk((v,)).square().sum() / power), span.low, span.high)
    assert found.values[0].value == pytest.approx(wanted, abs=1e-5)
    assert found.distance < 1e-5
    assert found.neutral > 0.01


def ring(process, bumps=8, variance=0.02):
    """Equal bumps on a circle of radius 1, and the exact denoiser of a Gaussian with their covariance."""
    angles = torch.arange(bumps, dtype=torch.float64) * 2 * math.pi / bumps
    means = torch.stack([angles.cos(), angles.sin()], 1).reshape(bumps, 1, 1, 2)
    weights = torch.full((bumps,), 1 / bumps, dtype=torch.float64)
    denoise = MixtureDenoiser(process, means, torch.full((bumps,), variance, dtype=torch.float64), weights)
    return denoise, gaussian(process, 0.0, 0.5 + variance, (1, 1, 2))


@pytest.mark.slow
@pytest.mark.parametrize("steps", [7, 13])
@pytest.mark.parametrize("solver", [Euler(), Heun()], ids=lambda solver: solver.kind)
def test_the_best_coefficient_by_flow_is_the_best_by_sliced_distances(solver, steps):
    """DCW on eight bumps: within 15 % of the least of sliced W2 to exact samples, where the Gaussian one is off."""
    process = Edm()
    levels, (denoise, alike) = Karras(steps=steps).levels(process), ring(process)
    x, many = (first(process, levels, (1, 1, 2), count, seed) for count, seed in ((128, 3), (10_000, 8)))
    flow, exact = (fine_flow(denoise, levels, states) for states in (x, many))

    def walk(x, value, denoise=denoise):
        return run(solver, denoise, levels, x, corrections=[Dcw(pixel=value)])

    found = by_flow(lambda v: walk(x, *v), flow.states[-1], [WIDE], BOOT, flow.error).values[0].value
    tried = torch.linspace(0.5, 1.5, 21, dtype=torch.float64) * found
    scores = torch.tensor([sliced(walk(many, float(v)), exact.states[-1]) for v in tried], dtype=torch.float64)
    best = parabola(tried, scores)
    assert found == pytest.approx(best, rel=0.15)
    power = float(fine_flow(alike, levels, x).states[-1].square().sum())
    predicted = solve_for(lambda v: float(walk(x, v, alike).square().sum()) / power, -0.5, 1.0)
    assert predicted is None or abs(predicted - best) > 0.15 * abs(best)


def sliced(x, y, directions=64):
    """Squared sliced W2 of samples (n, *) of equal number."""
    ways = torch.randn(directions, x[0].numel(), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    ways = ways / ways.norm(dim=1, keepdim=True)
    a, b = ((s.flatten(1) @ ways.T).sort(0).values for s in (x, y))
    return float((a - b).square().mean())


def parabola(places, scores):
    """The least of a parabola through the scores round the least of them."""
    centre = int(scores.argmin())
    near = slice(max(centre - 3, 0), centre + 4)
    terms = torch.stack([torch.ones_like(places[near]), places[near], places[near] ** 2], 1)
    _, slope, bend = torch.linalg.lstsq(terms, scores[near][:, None]).solution[:, 0].tolist()
    return -slope / (2 * bend)
