"""The samplers that k-diffusion names, written down once more in its own terms: states and denoisers of x0 + sigma n.

A denoiser D(x, sigma) is asked at sigmas that fall to 0, t = -ln sigma. Noise comes from a list, so that both sides add
the same. Ours run on the same three narrow bumps, in every scaling.
"""

import math
from itertools import pairwise

import pytest
import torch

from snrkit.diffusion.process import Ddpm, Edm, Flow
from snrkit.sampling.sample import start
from snrkit.sampling.solvers import (
    Deis,
    Dpm2,
    Dpmpp2m,
    Dpmpp2mSde,
    Dpmpp2sAncestral,
    Dpmpp3m,
    Dpmpp3mSde,
    DpmppSde,
    Heun,
)
from snrkit.sampling.step import Position
from tests.exact import mixture, run, tensor

SCALINGS = {"ve": Edm(), "vp": Ddpm(), "flow": Flow()}
SIGMAS = [40.0, 17.0, 9.0, 4.0, 2.5, 1.0, 0.55, 0.2, 0.07, 0.02, 0.0]


def ours(process, solver, draws, sigmas=SIGMAS):
    """The final state over alpha of a solver on the bumps, from sigma times the first draw, with the rest as noise."""
    levels = tuple(process.level(tensor(-2 * math.log(s) if s else math.inf)) for s in sigmas)
    mine = iter(draws[1:])
    return run(solver, mixture(process), levels, levels[0].sigma * draws[0], noise=lambda _: next(mine))


def bumps(state, sigma):
    """Their denoiser."""
    return mixture(Edm())(state, Edm().level(tensor(-2 * math.log(sigma)))).x0


def drawn(count=24, seed=3):
    draws = torch.Generator().manual_seed(seed)
    return torch.randn(count, 4, 1, 2, 2, generator=draws, dtype=torch.float64)


def ancestral(sigma, sigma_next, eta):
    """(sigma to step down to, sigma of the noise that is then added)."""
    up = min(sigma_next, eta * math.sqrt(sigma_next**2 * (sigma**2 - sigma_next**2) / sigma**2))
    return math.sqrt(sigma_next**2 - up**2), up


def dpm_2(x, sigmas):
    """A slope at the geometric mean of both sigmas."""
    for sigma, after in pairwise(sigmas):
        slope = (x - bumps(x, sigma)) / sigma
        if after:
            middle = math.exp((math.log(sigma) + math.log(after)) / 2)
            guess = x + slope * (middle - sigma)
            slope = (guess - bumps(guess, middle)) / middle
        x = x + slope * (after - sigma)
    return x


def dpmpp_2s_ancestral(x, sigmas, noise, eta, s_noise):
    for sigma, after in pairwise(sigmas):
        down, up = ancestral(sigma, after, eta)
        said = bumps(x, sigma)
        if down == 0:
            x = x + (x - said) / sigma * (down - sigma)
        else:
            t, end = -math.log(sigma), -math.log(down)
            h = end - t
            middle = math.exp(-(t + h / 2))
            guess = middle / sigma * x - math.expm1(-h / 2) * said
            x = down / sigma * x - math.expm1(-h) * bumps(guess, middle)
        if after:
            x = x + next(noise) * s_noise * up
    return x


def dpmpp_sde(x, sigmas, noise, eta, s_noise):
    """With the noise of a Brownian path over sigma, whose parts of a step are two independent draws."""
    for sigma, after in pairwise(sigmas):
        said = bumps(x, sigma)
        if after == 0:
            x = x + (x - said) / sigma * (after - sigma)
            continue
        t = -math.log(sigma)
        middle = math.exp(-(t - math.log(after)) / 2)
        path_early = math.sqrt(sigma - middle) * next(noise)
        path_late = math.sqrt(middle - after) * next(noise)
        down, up = ancestral(sigma, middle, eta)
        guess = down / sigma * x - math.expm1(t + math.log(down)) * said
        guess = guess + path_early / math.sqrt(sigma - middle) * s_noise * up
        second = bumps(guess, middle)
        down, up = ancestral(sigma, after, eta)
        x = down / sigma * x - math.expm1(t + math.log(down)) * second
        x = x + (path_early + path_late) / math.sqrt(sigma - after) * s_noise * up
    return x


def dpmpp_2m_sde(x, sigmas, noise, eta, s_noise):
    """The solver type midpoint."""
    last, h_last = None, None
    for sigma, after in pairwise(sigmas):
        said = bumps(x, sigma)
        if after == 0:
            return said
        h = math.log(sigma) - math.log(after)
        x = after / sigma * math.exp(-eta * h) * x - math.expm1(-h - eta * h) * said
        if last is not None:
            x = x - 0.5 * math.expm1(-h - eta * h) * (h / h_last) * (said - last)
        x = x + next(noise) * after * math.sqrt(-math.expm1(-2 * eta * h)) * s_noise
        last, h_last = said, h
    return x


def dpmpp_3m_sde(x, sigmas, noise, eta, s_noise):
    before, steps = [], []
    for sigma, after in pairwise(sigmas):
        said = bumps(x, sigma)
        if after == 0:
            return said
        h = math.log(sigma) - math.log(after)
        whole = h * (1 + eta)
        phi_2 = math.expm1(-whole) / whole + 1
        phi_3 = phi_2 / whole - 0.5
        x = math.exp(-whole) * x - math.expm1(-whole) * said
        if before:
            slope = (said - before[0]) / (steps[0] / h)
        if len(before) == 1:
            x = x + phi_2 * slope
        elif before:
            r_0, r_1 = steps[0] / h, steps[1] / h
            slope_last = (before[0] - before[1]) / r_1
            curve = (slope - slope_last) / (r_0 + r_1)
            x = x + phi_2 * (slope + r_0 * curve) - phi_3 * curve
        x = x + next(noise) * after * math.sqrt(-math.expm1(-2 * h * eta)) * s_noise
        before, steps = [said, *before][:2], [h, *steps][:2]
    return x


def deis_logrho(x, sigmas, k):
    """DEIS as diffusers has it, of up to three predictions of eps: integrals over rho of polynomials in ln rho."""

    def line(rho, b, c):
        return rho * (math.log(rho) - 1 - math.log(c)) / (math.log(b) - math.log(c))

    def parabola(rho, b, c, d):
        log, at, other = math.log(rho), math.log(c), math.log(d)
        whole = rho * (log**2 - 2 * log + 2 - (at + other) * (log - 1) + at * other)
        return whole / ((math.log(b) - at) * (math.log(b) - other))

    eps, known = [], []
    for sigma, after in pairwise(sigmas):
        eps, known = [(x - bumps(x, sigma)) / sigma, *eps][:k], [sigma, *known][:k]
        if after == 0 or len(eps) == 1:
            x = x + (after - sigma) * eps[0]
            continue
        whole = line if len(eps) == 2 else parabola
        for i, said in enumerate(eps):
            others = [rho for j, rho in enumerate(known) if j != i]
            x = x + (whole(after, known[i], *others) - whole(sigma, known[i], *others)) * said
    return x


@pytest.mark.parametrize("process", SCALINGS.values(), ids=SCALINGS)
def test_dpm_2_is_k_diffusions(process):
    """Without churn, to 1e-9 in every scaling."""
    draws = drawn()
    torch.testing.assert_close(ours(process, Dpm2(), draws), dpm_2(SIGMAS[0] * draws[0], SIGMAS), rtol=0, atol=1e-9)


@pytest.mark.parametrize("process", SCALINGS.values(), ids=SCALINGS)
@pytest.mark.parametrize(("eta", "s_noise"), [(1.0, 1.0), (0.6, 1.02)])
@pytest.mark.parametrize(("make", "theirs"), [(Dpmpp2sAncestral, dpmpp_2s_ancestral), (DpmppSde, dpmpp_sde)])
def test_singlestep_solvers_with_fresh_noise_are_k_diffusions(process, eta, s_noise, make, theirs):
    """With the same noise, to 1e-9 in every scaling."""
    draws = drawn()
    wanted = theirs(SIGMAS[0] * draws[0], SIGMAS, iter(draws[1:]), eta, s_noise)
    found = ours(process, make(eta=eta, s_noise=s_noise), draws)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-9)


def test_without_fresh_noise_both_are_dpm_solver_2s():
    """With eta 0 neither draws, and their middles are the same."""
    ends = [ours(Flow(), make(eta=0), drawn()[:1]) for make in (Dpmpp2sAncestral, DpmppSde)]
    torch.testing.assert_close(*ends, rtol=0, atol=1e-12)
    torch.testing.assert_close(
        ends[0], dpmpp_2s_ancestral(SIGMAS[0] * drawn()[0], SIGMAS, iter([0.0] * 24), 0.0, 1.0), rtol=0, atol=1e-9
    )


@pytest.mark.parametrize("solver", [Dpm2(), Dpmpp2sAncestral(eta=0), DpmppSde(eta=0)], ids=lambda s: s.kind)
def test_from_pure_noise_the_second_answer_changes_nothing(solver):
    """There is no middle between pure noise and a level: the first step is Euler's, whatever else was asked."""
    process = Flow()
    levels = tuple(process.level(process.logsnr(tensor(t))) for t in (1.0, 0.7))
    x = start(process, torch.randn(3, 1, 2, 2), levels[0])
    said = mixture(process)(x, levels[0])
    wanted = levels[1].alpha * said.x0 + levels[1].sigma * said.eps
    torch.testing.assert_close(run(solver, mixture(process), levels, x), wanted, rtol=0, atol=0)
    assert not torch.equal(run(Heun(), mixture(process), levels, x), wanted)


@pytest.mark.parametrize("process", SCALINGS.values(), ids=SCALINGS)
@pytest.mark.parametrize(("eta", "s_noise"), [(1.0, 1.0), (0.4, 1.02), (1.5, 1.0), (0.0, 1.0)])
@pytest.mark.parametrize(
    ("make", "theirs", "options"),
    [(Dpmpp2mSde, dpmpp_2m_sde, {}), (Dpmpp3mSde, dpmpp_3m_sde, {"published": True})],
    ids=["2m", "3m"],
)
def test_multistep_solvers_of_the_sde_are_k_diffusions(process, eta, s_noise, make, theirs, options):
    """With the same noise, to 1e-9 in every scaling; 3m in the published form."""
    draws = drawn()
    wanted = theirs(SIGMAS[0] * draws[0], SIGMAS, iter(draws[1:]), eta, s_noise)
    found = ours(process, make(eta=eta, s_noise=s_noise, **options), draws)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-9)


def test_without_noise_the_2m_sde_is_dpmpp_2m_bit_for_bit():
    """With eta 0 nothing is drawn, and every bit is that of the solver of the flow."""
    assert torch.equal(ours(Flow(), Dpmpp2mSde(eta=0), drawn()[:1]), ours(Flow(), Dpmpp2m(), drawn()[:1]))


@pytest.mark.parametrize("published", [True, False])
def test_without_noise_the_3m_sde_is_dpmpp_3m(published):
    """With eta 0 and two steps behind it, each step is that of the solver of the flow; its second step is not."""
    process = Edm()
    here, there = process.level(tensor(1.0)), process.level(tensor(1.7))
    position, draws = Position(4, (here,) * 40, here, there), drawn()
    past = ((draws[1], tensor(0.2)), (draws[2], tensor(-0.1)))
    sde, flow = Dpmpp3mSde(eta=0, published=published), Dpmpp3m(published=published, lower_order_final=False)
    for length, same in ((2, True), (1, False)):
        ends = [s.step(mixture(process), draws[0], position, past[:length], None)[0] for s in (sde, flow)]
        assert torch.allclose(*ends, rtol=0, atol=1e-12) == same


@pytest.mark.parametrize("process", SCALINGS.values(), ids=SCALINGS)
@pytest.mark.parametrize("k", [1, 2, 3])
def test_deis_in_logsnr_is_diffusers(process, k):
    """The closed integrals over rho of polynomials in ln rho, to 1e-9 in every scaling."""
    draws = drawn()
    wanted = deis_logrho(SIGMAS[0] * draws[0], SIGMAS, k)
    torch.testing.assert_close(ours(process, Deis(k=k, variable="logsnr"), draws), wanted, rtol=0, atol=1e-9)


def test_deis_in_time_is_the_papers_integral():
    """On flow, with r = t/(1 - t), the weights are integrals of Lagrange's polynomials in t, by an adaptive rule."""
    from scipy.integrate import quad

    process, k, times = Flow(), 3, (0.9, 0.7, 0.55, 0.3, 0.12)
    levels = tuple(process.level(process.logsnr(tensor(t))) for t in times)
    draws, eps = drawn(), []
    x = draws[0]
    for i, (t, after) in enumerate(pairwise(times)):
        eps = [mixture(process)(x, levels[i]).eps, *eps][:k]
        nodes = times[max(0, i - k + 1) : i + 1][::-1]
        moved = x / (1 - t)
        for j, node in enumerate(nodes):
            others = [other for other in nodes if other != node]
            weight = quad(
                lambda s, n=node, o=others: math.prod((s - b) / (n - b) for b in o) / (1 - s) ** 2,
                t, after, epsabs=1e-13, epsrel=1e-13,
            )[0]  # fmt: skip
            moved = moved + weight * eps[j]
        x = (1 - after) * moved
    torch.testing.assert_close(run(Deis(k=k), mixture(process), levels, draws[0]), x, rtol=0, atol=1e-9)


def test_deis_in_the_time_of_edm_is_deis_in_logsnr():
    """c_noise = ln(sigma)/4 is a linear function of logsnr."""
    ends = [ours(Edm(), Deis(k=4, variable=variable), drawn()[:1]) for variable in ("time", "logsnr")]
    torch.testing.assert_close(*ends, rtol=0, atol=1e-12)
