"""Solvers: their order, their published forms, and what they share between scalings."""

import itertools
import math
from dataclasses import replace
from itertools import pairwise
from typing import get_args

import numpy as np
import pytest
import torch

from snrkit.base.errors import SnrkitError
from snrkit.data.toy import MixtureDenoiser
from snrkit.diffusion.denoiser import check_readable
from snrkit.diffusion.level import level_of
from snrkit.diffusion.prediction import Cond, Prediction, Wrapped
from snrkit.diffusion.process import Ddpm, Edm, Flow
from snrkit.sampling.corrections import ClipX0, EpsilonScaling, NoiseAwareness, ScoreRescaling
from snrkit.sampling.grid import Karras, Trailing, UniformLogsnr, UniformTime
from snrkit.sampling.sample import sample, start
from snrkit.sampling.sampler import Dummy, Sampler, dry_run, open_with
from snrkit.sampling.solvers import (
    AnalyticDpm,
    Ancestral,
    AnySolver,
    Churn,
    Deis,
    Dpm2,
    Dpmpp2m,
    Dpmpp2mSde,
    Dpmpp2sAncestral,
    Dpmpp3m,
    Dpmpp3mSde,
    DpmppSde,
    Euler,
    Heun,
    Increments,
    Ipndm,
    IpndmV,
    SaSolver,
    Unipc,
)
from snrkit.sampling.step import Capabilities, ForwardStatistics, Position, no_fit
from snrkit.shift.amplification import Modes, gaussian_gain
from tests.exact import (
    MEAN,
    THREE,
    VARIANCE,
    edm_sampler,
    gaussian,
    gaussian_flow,
    mixture,
    run,
    tensor,
    uniform_levels,
    velocity_heun,
)

DETERMINISTIC = {
    "euler": Euler(), "heun": Heun(), "dpmpp_2m": Dpmpp2m(), "dpmpp_3m": Dpmpp3m(),
    "dpmpp_3m published": Dpmpp3m(published=True), "unipc 1": Unipc(p=1), "unipc": Unipc(p=2), "unipc 3": Unipc(p=3),
    "unipc 3 predictor": Unipc(p=3, corrector=False), "ipndm": Ipndm(), "ipndm 2": Ipndm(k=2), "ipndm_v 2": IpndmV(k=2),
    "ipndm_v": IpndmV(k=3), "ipndm_v 4": IpndmV(k=4), "dpm_2": Dpm2(),
    "deis": Deis(k=2), "deis logsnr": Deis(k=2, variable="logsnr"), "deis logsnr 4": Deis(k=4, variable="logsnr"),
    "dpmpp_2m_sde 0": Dpmpp2mSde(eta=0), "dpmpp_3m_sde 0": Dpmpp3mSde(eta=0),
    "dpmpp_3m_sde 0 published": Dpmpp3mSde(eta=0, published=True),
    "dpmpp_2s_ancestral 0": Dpmpp2sAncestral(eta=0), "dpmpp_sde 0": DpmppSde(eta=0), "sa_solver 0": SaSolver(eta=0),
    "sa_solver 0 predictor": SaSolver(eta=0, predictor=2, corrector=0),
    "sa_solver 0 corrector 2": SaSolver(eta=0, predictor=1, corrector=2),
}  # fmt: skip
STOCHASTIC = {
    "ancestral": Ancestral(eta=1.0), "ancestral large": Ancestral(variance="large"),
    "churn": Churn(s_churn=10, s_min=0, s_max=None, s_noise=1.0),
    "dpmpp_2s_ancestral": Dpmpp2sAncestral(), "dpmpp_2s_ancestral 0.5": Dpmpp2sAncestral(eta=0.5),
    "dpmpp_sde": DpmppSde(), "dpmpp_sde 0.5": DpmppSde(eta=0.5),
    "dpmpp_2m_sde": Dpmpp2mSde(), "dpmpp_2m_sde 2": Dpmpp2mSde(eta=2),
    "dpmpp_3m_sde": Dpmpp3mSde(), "dpmpp_3m_sde published": Dpmpp3mSde(published=True),
    "sa_solver": SaSolver(), "sa_solver 0.5": SaSolver(eta=0.5, predictor=1, corrector=2),
}  # fmt: skip
ALL = DETERMINISTIC | STOCHASTIC
FIRST = {type(solver): name for name, solver in reversed((STOCHASTIC | DETERMINISTIC).items())}
OF_EACH = {name: ALL[name] for name in FIRST.values()}  # one of every class, with noise where it can have it


def union(annotated):
    """The classes of a union of Values."""
    return get_args(get_args(annotated)[0])


@pytest.mark.parametrize("kind", union(AnySolver))
def test_what_a_solver_says_it_renews_is_what_it_does(kind):
    """0: the noise that is offered changes no bit, and an error decays as in the flow of Gaussian data; 1: noise acts,
    and an error decays as in the chain that renews all of it; None: noise acts."""
    process, denoise = Flow(), gaussian(Flow(), mean=0.0)
    levels = (*uniform_levels(process, 600), process.level(tensor(math.inf)))
    solver = open_with(Sampler(grid=Karras(steps=4), solver=kind()), process, Dummy(process)).solver
    if isinstance(kind(), AnalyticDpm):
        solver = replace(solver, unknown=torch.zeros(len(levels), dtype=torch.float64))
    if isinstance(kind(), Increments):
        solver = replace(solver, fit=no_fit(len(levels), kind().terms))
    x, error = torch.randn(2, 1, 1, 1, dtype=torch.float64), 0.1

    def final(start, seed):
        draws = torch.Generator().manual_seed(seed)
        return run(solver, denoise, levels, start, lambda t: torch.randn(t.shape, generator=draws, dtype=t.dtype))

    plain = final(x, 1)
    assert torch.equal(plain, final(x, 2)) == (solver.renews == 0)
    if solver.renews is not None:
        known = Modes(torch.tensor([VARIANCE], dtype=torch.float64), {"all": torch.ones(1, dtype=torch.float64)})
        (gain,) = gaussian_gain(known, levels[:1], solver.renews == 1)["all"]
        torch.testing.assert_close((final(x + error, 1) - plain) / error, torch.full_like(x, gain), rtol=0.02, atol=0)


def test_analytic_dpm_draws_noise_at_any_eta():
    """At eta 0 it has that of Var[x0 | x], so that its states follow no flow, and it says so."""
    process, denoise = Flow(), gaussian(Flow(), mean=0.0)
    levels = (*uniform_levels(process, 5), process.level(tensor(math.inf)))
    solver = open_with(Sampler(grid=Karras(steps=4), solver=AnalyticDpm(eta=0.0)), process, Dummy(process)).solver
    solver = replace(solver, unknown=torch.full((len(levels),), 0.5, dtype=torch.float64))
    x = torch.randn(2, 1, 1, 1, dtype=torch.float64)
    still, drawn = (run(solver, denoise, levels, x, make) for make in (torch.zeros_like, torch.ones_like))
    assert solver.renews is None
    assert not torch.equal(still, drawn)


def slope(error):
    """The order of convergence between 128 and 256 steps."""
    return math.log2(error(128) / error(256))


WARM = 5  # steps on the exact trajectory that fill a multistep solver's memory


def exact_history(solver, denoise, x, levels):
    """What a solver remembers of steps on the exact trajectory up to levels[WARM], where it is at x."""
    memory = None
    for index, (here, there) in enumerate(pairwise(levels[: WARM + 1])):
        state = gaussian_flow(x, levels[WARM], here)
        memory = solver.step(denoise, state, Position(index, levels, here, there), memory, None)[2]
    return memory


def path_error(process, solver, steps, high=6.0):
    """Distance from the exact flow at logsnr `high` after uniform steps from -6, with exact history."""
    low = -6.0 - (high + 6) / steps * WARM
    denoise, levels = gaussian(process), uniform_levels(process, steps + WARM, low, high)
    first = levels[WARM]
    x = first.alpha * MEAN + (first.alpha**2 * VARIANCE + first.sigma**2).sqrt() * torch.linspace(
        -2, 2, 5, dtype=torch.float64
    ).reshape(5, 1, 1, 1)
    wanted = gaussian_flow(x, first, levels[-1])
    memory = exact_history(solver, denoise, x, levels)
    for index, (here, there) in enumerate(pairwise(levels)):
        if index >= WARM:
            x, _, memory = solver.step(denoise, x, Position(index, levels, here, there), memory, None)
    return float((x - wanted).abs().max())


def variance_error(process, solver, steps):
    """Error of the final variance: what a chain makes is affine in its first state and in every noise that it draws.

    So one walk has all of its gains, of a batch with an image for each: nothing, a first state, and each draw alone.
    """
    denoise, levels = gaussian(process), uniform_levels(process, steps)
    first = torch.zeros(2 + 2 * steps, 1, 1, 1, dtype=torch.float64)
    first[1], drawn = 1, itertools.count(2)

    def one_alone(state):
        unit = torch.zeros_like(state)
        unit[next(drawn)] = 1
        return unit

    end = run(solver, denoise, levels, first, noise=one_alone)
    squares = (end - end[0]).squeeze() ** 2
    variance = squares[1] * (levels[0].alpha ** 2 * VARIANCE + levels[0].sigma ** 2) + squares[2:].sum()
    return float((variance - levels[-1].alpha ** 2 * VARIANCE - levels[-1].sigma ** 2).abs())


@pytest.mark.parametrize("process", THREE.values(), ids=THREE)
@pytest.mark.parametrize("solver", ALL.values(), ids=ALL)
def test_every_solver_has_the_order_it_declares(process, solver):
    """The slope of the error on Gaussian data lies between order - 0.15 and order + 0.3."""
    error = variance_error if solver in STOCHASTIC.values() else path_error
    measured = slope(lambda steps: error(process, solver, steps))
    assert solver.order - 0.15 <= measured <= solver.order + 0.3


@pytest.mark.parametrize("process", THREE.values(), ids=THREE)
@pytest.mark.parametrize("variable", ["time", "logsnr"])
def test_deis_of_three_predictions_has_order_3(process, variable):
    """Measured up to logsnr 0: what it misses in logsnr has another sign at cleaner levels, and cancels there."""
    solver = Deis(k=3, variable=variable)
    measured = slope(lambda steps: path_error(process, solver, steps, high=0.0))
    assert 3 - 0.15 <= measured <= 3 + 0.3


def test_every_kind_of_solver_is_measured():
    """A solver added to the union has to enter the test of orders."""
    from typing import get_args

    from snrkit.sampling.solvers import AnySolver

    kinds = {cls.model_fields["kind"].default for cls in get_args(get_args(AnySolver)[0])}
    others = {"analytic_dpm", "fitted", "bns"}  # tested on their own: no error on Gaussian data; their base bit for bit
    assert kinds == {solver.kind for solver in ALL.values()} | others


def test_heun_on_edm_is_algorithm_1():
    """Equal to EDM's Algorithm 1 to 1e-9 in float64, on a mixture and EDM's own grid."""
    process = Edm()
    denoise, levels = mixture(process), Karras(steps=18).levels(process)
    x = start(process, torch.randn(6, 1, 2, 2), levels[0])
    sigmas = [float(level.sigma) for level in levels]
    d = lambda state, sigma: denoise(state, process.level(tensor(-2 * math.log(sigma)))).x0  # noqa: E731
    torch.testing.assert_close(run(Heun(), denoise, levels, x), edm_sampler(d, x, sigmas), rtol=0, atol=1e-9)


def test_churn_on_edm_is_algorithm_2():
    """Equal to EDM's Algorithm 2 with the same noise, with its interval of levels."""
    process = Edm()
    denoise, levels = mixture(process), Karras(steps=18).levels(process)
    x = start(process, torch.randn(6, 1, 2, 2), levels[0])
    draws = [torch.randn(6, 1, 2, 2, dtype=torch.float64) for _ in range(18)]
    settings = {"s_churn": 40.0, "s_min": 0.05, "s_max": 50.0, "s_noise": 1.003}
    d = lambda state, sigma: denoise(state, process.level(tensor(-2 * math.log(sigma)))).x0  # noqa: E731
    mine, theirs = iter(draws), iter(draws)
    ours = run(Churn(**settings), denoise, levels, x, noise=lambda _: next(mine))
    reference = edm_sampler(d, x, [float(level.sigma) for level in levels], noise=lambda _: next(theirs), **settings)
    torch.testing.assert_close(ours, reference, rtol=0, atol=1e-9)


def test_heun_on_flow_is_velocity_heun_in_t():
    """Equal to Heun in t on dx/dt = eps - x0 to 1e-9 in float64, from t = 1."""
    process = Flow()
    denoise, levels = mixture(process), UniformTime(steps=12).levels(process)
    x = start(process, torch.randn(6, 1, 2, 2), levels[0])

    def velocity(state, t):
        p = denoise(state, process.level(process.logsnr(tensor(t))))
        return p.eps - p.x0

    times = [float(level.sigma) for level in levels]
    assert times[0] == 1
    torch.testing.assert_close(run(Heun(), denoise, levels, x), velocity_heun(velocity, x, times), rtol=0, atol=1e-9)


def diffusers_like(process, eps_of):
    """A denoiser from a function eps(state in vp, time), read in the process's own scaling."""

    def answer(x, level, told=None, cond=None):
        vp = level_of(level.logsnr, "vp")
        eps = eps_of(x * vp.alpha / level.alpha, process.time(level.logsnr))
        return Prediction((x - level.sigma * eps) / level.alpha, eps)

    return Wrapped(process, answer)


def test_heun_on_ddpm_ve_is_sigma_space_heun():
    """Equal to Heun in sigma = sqrt((1 - abar)/abar) on the table, transcribed and as diffusers steps it, to 1e-9."""
    process = Ddpm(scaling="ve")
    eps_of = lambda x, time: torch.tanh(x) * (0.5 + float(time) / 2000)  # noqa: E731
    denoise, levels = diffusers_like(process, eps_of), UniformTime(steps=10).levels(process)
    sigmas = [float(level.sigma) for level in levels]
    x = start(process, torch.randn(4, 1, 2, 2), levels[0])

    def d(state, sigma):
        time = process.time(tensor(-2 * math.log(sigma)))
        return state - sigma * eps_of(state / math.sqrt(1 + sigma**2), time)

    ours = run(Heun(), denoise, levels, x)
    torch.testing.assert_close(ours, edm_sampler(d, x, sigmas), rtol=0, atol=1e-9)

    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.HeunDiscreteScheduler(1000, 1e-4, 0.02, "linear", timestep_spacing="linspace")
    scheduler.set_timesteps(10)
    torch.testing.assert_close(
        scheduler.sigmas[[0, 1, 3, -2]].double(), tensor(sigmas)[[0, 1, 2, -2]], rtol=2e-4, atol=0
    )
    exact = tensor(sigmas)  # the scheduler's own arithmetic, on the table in float64 instead of its float32 copy
    scheduler.sigmas = torch.cat([exact[:1], exact[1:-1].repeat_interleave(2), exact[-1:]])
    state = x.clone()
    for time in scheduler.timesteps:
        state = scheduler.step(eps_of(scheduler.scale_model_input(state, time), time), time, state).prev_sample
    torch.testing.assert_close(ours, state, rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    "solver",
    [
        Euler(),
        Ancestral(),
        Ancestral(eta=0.5),
        Ancestral(variance="large"),
        Dpmpp2m(),
        Dpmpp3m(),
        Unipc(),
        Ipndm(),
        Dpm2(),
        Dpmpp2sAncestral(),
        DpmppSde(),
        Dpmpp2mSde(),
        Dpmpp3mSde(),
        Deis(variable="logsnr"),
    ],
    ids=str,
)
def test_the_path_is_the_same_in_every_scaling(solver):
    """All but heun and churn give the same x/alpha at the same logsnr in vp, ve and flow."""
    ends = []
    draws = [torch.randn(3, 1, 2, 2, dtype=torch.float64) for _ in range(18)]
    first = torch.randn(3, 1, 2, 2, dtype=torch.float64)
    for process in (Ddpm(), Edm(), Flow()):
        logsnr = [*torch.linspace(-8, 7, 9, dtype=torch.float64), tensor(math.inf)]
        levels, mine = tuple(process.level(v) for v in logsnr), iter(draws)
        ends.append(run(solver, mixture(process), levels, first * levels[0].alpha, noise=lambda _, m=mine: next(m)))
    torch.testing.assert_close(ends[0], ends[1], rtol=0, atol=1e-10)
    torch.testing.assert_close(ends[0], ends[2], rtol=0, atol=1e-10)


def test_euler_on_ddpm_is_ddim():
    """x' = sqrt(abar') x0 + sqrt(1 - abar') eps, as diffusers' DDIMScheduler computes it."""
    diffusers = pytest.importorskip("diffusers")
    process = Ddpm()
    eps_of = lambda x, time: torch.tanh(x) * (0.5 + float(time) / 2000)  # noqa: E731
    scheduler = diffusers.DDIMScheduler(1000, 1e-4, 0.02, "linear", clip_sample=False, set_alpha_to_one=False)
    scheduler.alphas_cumprod = torch.sigmoid(process.table())
    scheduler.final_alpha_cumprod = tensor(1.0)
    scheduler.set_timesteps(20)
    state = x = torch.randn(4, 1, 2, 2, dtype=torch.float64)
    for time in scheduler.timesteps:
        state = scheduler.step(eps_of(state, time), time, state).prev_sample
    logsnr = process.logsnr(scheduler.timesteps.double())
    levels = (*(process.level(v) for v in logsnr), process.level(tensor(math.inf)))
    torch.testing.assert_close(run(Euler(), diffusers_like(process, eps_of), levels, x), state, rtol=0, atol=1e-9)


def test_ancestral_is_ddpms_posterior():
    """eta 1 has the mean and variance of q(x' | x, x0) of Ho et al. 2020, eq. 7."""
    process = Ddpm()
    here, there = process.level(process.logsnr(tensor(700.0))), process.level(process.logsnr(tensor(699.0)))
    x, x0 = torch.randn(2, 8, 1, 1, 1, dtype=torch.float64)
    denoise = Wrapped(process, lambda s, level, told, cond: Prediction(x0, (s - level.alpha * x0) / level.sigma))
    position = Position(0, (here, there), here, there)
    mean = Ancestral().step(denoise, x, position, None, torch.zeros_like)[0]
    spread = Ancestral().step(denoise, x, position, None, torch.ones_like)[0] - mean
    abar, abar_next = here.alpha**2, there.alpha**2
    beta = 1 - abar / abar_next
    published = abar_next.sqrt() * beta / (1 - abar) * x0
    published = published + (1 - beta).sqrt() * (1 - abar_next) / (1 - abar) * x
    torch.testing.assert_close(mean, published, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(spread[0, 0, 0, 0] ** 2, (1 - abar_next) / (1 - abar) * beta, rtol=1e-9, atol=0)


def guided_diffusion(table, kept, eps_of, x, draws, spread_of=None):
    """p_sample_loop with FIXED_LARGE on the kept steps of a table of abar, by guided-diffusion's arithmetic.

    With LEARNED_RANGE where `spread_of` is the second half of the network's answer. As SpacedDiffusion has it, betas
    are those between kept steps, so that all else follows from them anew.
    """
    abar = table[kept]
    before = torch.cat([tensor([1.0]), abar[:-1]])
    betas = 1 - abar / before
    small = betas * (1 - before) / (1 - abar)
    large = torch.cat([small[1:2], betas[1:]])
    for i in reversed(range(len(kept))):
        x0 = (1 / abar[i]).sqrt() * x - (1 / abar[i] - 1).sqrt() * eps_of(x, tensor(float(kept[i])))
        mean = betas[i] * before[i].sqrt() / (1 - abar[i]) * x0
        mean = mean + (1 - before[i]) * (1 - betas[i]).sqrt() / (1 - abar[i]) * x
        log_variance = large[i].log()
        if spread_of is not None:
            least, most = small[max(i, 1)].log(), betas[i].log()
            share = (spread_of(x, tensor(float(kept[i]))) + 1) / 2
            log_variance = share * most + (1 - share) * least
        x = mean + (0.5 * log_variance).exp() * next(draws) if i else mean
    return x


@pytest.mark.parametrize("process", [Ddpm(), Ddpm(scaling="ve"), Flow()], ids=["vp", "ve", "flow"])
@pytest.mark.parametrize("variance", ["large", "learned"])
def test_ancestral_with_other_variances_is_guided_diffusions(process, variance):
    """FIXED_LARGE and LEARNED_RANGE on 12 kept steps of 1000, with the same noise, to 1e-9 in every scaling."""
    table, kept = torch.sigmoid(Ddpm().table()), torch.arange(0, 1000, 90)
    eps_of = lambda x, time: torch.tanh(x) * (0.5 + float(time) / 2000)  # noqa: E731
    spread_of = (lambda x, time: torch.sin(3 * x + time / 300)) if variance == "learned" else None
    first, draws = torch.randn(4, 1, 2, 2, dtype=torch.float64), torch.randn(12, 4, 1, 2, 2, dtype=torch.float64)
    reference = guided_diffusion(table, kept, eps_of, first, iter(draws), spread_of)
    logsnr = Ddpm().logsnr(kept.flip(0).double())
    levels = tuple(process.level(value) for value in (*logsnr, tensor(math.inf)))

    def answer(x, level, told=None, cond=None):
        given = x * level_of(level.logsnr, "vp").alpha / level.alpha, Ddpm().time(level.logsnr)
        eps, spread = eps_of(*given), None if spread_of is None else spread_of(*given)
        return Prediction((x - level.sigma * eps) / level.alpha, eps, spread)

    begin = first * levels[0].alpha / level_of(logsnr[0], "vp").alpha
    mine = iter(draws)
    ours = run(Ancestral(variance=variance), Wrapped(process, answer), levels, begin, noise=lambda _: next(mine))
    torch.testing.assert_close(ours, reference, rtol=0, atol=1e-9)


def test_a_learned_variance_stays_between_its_bounds():
    """-1 is the small one and 1 the large one, and no model without one is sampled so."""
    process, levels = Ddpm(), UniformTime(steps=6).levels(Ddpm())
    x = start(process, torch.randn(3, 1, 2, 2, dtype=torch.float64), levels[0])

    def ends(solver, spread):
        draws = torch.Generator().manual_seed(2)
        answer = lambda s, level, told=None, cond=None: replace(  # noqa: E731
            mixture(process)(s, level), spread=None if spread is None else torch.full_like(s, spread)
        )
        return run(solver, Wrapped(process, answer), levels, x, lambda s: torch.randn(s.shape, generator=draws).to(s))

    for spread, variance in ((-1.0, "small"), (1.0, "large")):
        torch.testing.assert_close(
            ends(Ancestral(variance="learned"), spread), ends(Ancestral(variance=variance), None)
        )
    with pytest.raises(SnrkitError, match="needs a model that learned one"):
        ends(Ancestral(variance="learned"), None)
    assert "kind adm or dit" in Ancestral(variance="learned").missing(Capabilities(True, True, True))
    assert Ancestral(variance="learned").missing(Capabilities(True, True, True, spread=True)) is None
    assert Ancestral(variance="large").missing(Capabilities(True, True, True)) is None
    with pytest.raises(ValueError, match="whose eta is 1"):
        Ancestral(variance="learned", eta=0.5)


def test_what_changes_a_belief_leaves_the_learned_variance():
    """Every correction of belief answers with the spread of the network, and guidance with that of its own p."""
    process = Ddpm()
    level, x = process.level(tensor(0.5)), torch.randn(2, 1, 2, 2, dtype=torch.float64)
    spread = torch.linspace(-1, 1, x.numel(), dtype=torch.float64).reshape(x.shape)
    answer = lambda s, at, told, cond: replace(mixture(process)(s, at), spread=spread)  # noqa: E731
    corrections = (ClipX0(limit=0.5), EpsilonScaling(scale=1.1), ScoreRescaling(k=1.2), NoiseAwareness(weight=0.5))
    position = Position(0, (level, process.level(tensor(1.0))), level, process.level(tensor(1.0)))
    for correction in corrections:
        wrapped = correction.wrap(Wrapped(process, answer), position)
        assert torch.equal(wrapped(x, level, cond=Cond()).spread, spread)


def test_the_large_variance_is_written_only_where_it_is_asked_for():
    """What was made by ancestral steps before there was a choice keeps its definition, and the choice is read back."""
    assert set(Ancestral().model_dump()) == {"kind", "eta", "logsnr_min", "logsnr_max"}
    assert Ancestral.model_validate(Ancestral(variance="large").model_dump()) == Ancestral(variance="large")


def test_ancestral_with_eta_0_is_euler_bit_for_bit():
    """The neutral element of ancestral sampling."""
    process = Flow()
    levels, x = UniformTime(steps=8).levels(process), torch.randn(3, 1, 2, 2, dtype=torch.float64)
    assert torch.equal(run(Ancestral(eta=0), mixture(process), levels, x), run(Euler(), mixture(process), levels, x))


def test_dpmpp_2m_equals_diffusers():
    """DPMSolverMultistepScheduler with its defaults, on the same levels."""
    diffusers = pytest.importorskip("diffusers")
    process = Ddpm()
    eps_of = lambda x, time: torch.tanh(x) * (0.5 + float(time) / 2000)  # noqa: E731
    scheduler = diffusers.DPMSolverMultistepScheduler(1000, 1e-4, 0.02, "linear")
    scheduler.set_timesteps(20)
    state = x = torch.randn(4, 1, 2, 2, dtype=torch.float64)
    for time in scheduler.timesteps:
        state = scheduler.step(eps_of(state, time), time, state).prev_sample
    logsnr = process.logsnr(scheduler.timesteps.double())
    levels = (*(process.level(v) for v in logsnr), process.level(tensor(math.inf)))
    ours = run(Dpmpp2m(), diffusers_like(process, eps_of), levels, x)
    torch.testing.assert_close(ours, state.double(), rtol=0, atol=1e-4 * float(state.abs().max()))


@pytest.mark.parametrize("solver", [s for s in ALL.values() if not s.kind.startswith("ipndm")], ids=str)
def test_the_last_step_returns_the_prediction(solver):
    """Into the clean level every one of these solvers lands exactly on x0 of its last call."""
    process = Edm()
    levels = Karras(steps=5).levels(process)
    x = start(process, torch.randn(3, 1, 2, 2), levels[0])
    from snrkit.sampling.sample import sample

    for step in sample(mixture(process), solver, levels, x, noise=torch.randn_like):
        last = step
    assert torch.equal(last.x_next, last.calls[-1].prediction.x0)
    assert last.position.there.is_clean()


@pytest.mark.parametrize("solver", ALL.values(), ids=ALL)
@pytest.mark.parametrize("process", THREE.values(), ids=THREE)
def test_a_grid_per_image_equals_a_shared_one(process, solver):
    """Levels of shape (B,) give the same bits as levels of shape ()."""
    levels = UniformLogsnr(steps=6).levels(process)
    wide = tuple(process.level(level.logsnr.expand(3).clone()) for level in levels)
    x = start(process, torch.randn(3, 1, 2, 2), levels[0])
    draws = [torch.randn(3, 1, 2, 2, dtype=torch.float64) for _ in range(12)]
    a, b = iter(draws), iter(draws)
    one = run(solver, elementwise(process), levels, x, noise=lambda _: next(a))
    many = run(solver, elementwise(process), wide, x, noise=lambda _: next(b))
    assert torch.equal(one, many)


@pytest.mark.parametrize("solver", ALL.values(), ids=ALL)
def test_levels_of_their_own_leave_images_alone(solver):
    """Images at different levels of one batch go the way that each goes by itself, noise included."""
    from snrkit.training.randomness import ImageStreams

    process, seeds = Edm(), (5, 9, 2)
    grids = [UniformLogsnr(steps=5, logsnr_min=low, logsnr_max=7).levels(process) for low in (-9, -6, -3)]
    wide = [process.level(torch.stack([level.logsnr for level in levels])) for levels in zip(*grids, strict=True)]
    x = torch.randn(3, 1, 2, 2, dtype=torch.float64)
    together = run(solver, elementwise(process), wide, x, noise=ImageStreams(seeds))
    for i, seed in enumerate(seeds):
        alone = run(solver, elementwise(process), grids[i], x[i : i + 1], noise=ImageStreams([seed]))
        assert torch.equal(together[i : i + 1], alone)


def elementwise(process) -> MixtureDenoiser:
    return gaussian(process, shape=(1, 2, 2))


def test_flow_starts_at_pure_noise():
    """No solver divides by alpha: from t = 1 every state is finite."""
    process = Flow()
    levels = UniformTime(steps=6).levels(process)
    assert levels[0].alpha == 0
    from snrkit.diffusion.prediction import X0

    check_readable(levels[0], X0())
    for solver in ALL.values():
        x = run(solver, mixture(process), levels, torch.randn(2, 1, 2, 2, dtype=torch.float64), noise=torch.randn_like)
        assert torch.isfinite(x).all()


@pytest.mark.parametrize("steps", [10, 14, 15, 20])
@pytest.mark.parametrize(("published", "lower_order_final"), [(True, True), (True, False), (False, True)])
def test_dpmpp_3m_published_equals_diffusers(published, lower_order_final, steps):
    """DPMSolverMultistepScheduler of order 3 is the published form, few steps or many; the correct one differs."""
    ours, theirs = against_diffusers(
        Dpmpp3m(published=published, lower_order_final=lower_order_final), "DPMSolverMultistepScheduler", steps,
        solver_order=3, final_sigmas_type="zero", lower_order_final=lower_order_final,
    )  # fmt: skip
    close = torch.allclose(ours, theirs, rtol=0, atol=1e-4 * float(theirs.abs().max()))
    assert close == published


def test_the_lowered_order_at_the_end_of_few_steps_is_no_idle_switch():
    """It changes 14 steps and not 15, as in diffusers."""
    process = Edm()
    x = torch.randn(2, 1, 2, 2, dtype=torch.float64)
    for steps, same in ((14, False), (15, True)):
        levels = Karras(steps=steps).levels(process)
        ends = [run(Dpmpp3m(lower_order_final=on), mixture(process), levels, 80 * x) for on in (True, False)]
        assert torch.equal(*ends) == same


@pytest.mark.parametrize("p", [1, 2, 3])
@pytest.mark.parametrize("corrector", [True, False])
def test_unipc_equals_diffusers(p, corrector):
    """UniPCMultistepScheduler with its defaults, on the same levels."""
    off = [] if corrector else list(range(20))
    ours, theirs = against_diffusers(
        Unipc(p=p, corrector=corrector), "UniPCMultistepScheduler", solver_order=p, disable_corrector=off
    )
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4 * float(theirs.abs().max()))


def against_diffusers(solver, name, steps=20, **settings):
    """(ours, diffusers') images of a made-up eps network on the levels that the scheduler chooses."""
    diffusers = pytest.importorskip("diffusers")
    process = Ddpm()
    eps_of = lambda x, time: torch.tanh(x) * (0.5 + float(time) / 2000)  # noqa: E731
    scheduler = getattr(diffusers, name)(1000, 1e-4, 0.02, "linear", **settings)
    scheduler.set_timesteps(steps)
    state = x = torch.randn(4, 1, 2, 2, dtype=torch.float64)
    for time in scheduler.timesteps:
        state = scheduler.step(eps_of(state, time), time, state).prev_sample
    logsnr = process.logsnr(scheduler.timesteps.double())
    levels = (*(process.level(v) for v in logsnr), process.level(tensor(math.inf)))
    return run(solver, diffusers_like(process, eps_of), levels, x), state.double()


def test_ipndm_is_the_published_update():
    """x' = x + (sigma' - sigma) times 3/2, -1/2; 23/12, -16/12, 5/12; 55/24, -59/24, 37/24, -9/24 of the eps."""
    process = Edm()
    denoise, levels = mixture(process), Karras(steps=9).levels(process)
    state = x = start(process, torch.randn(4, 1, 2, 2), levels[0])
    table = [[1.0], [3 / 2, -1 / 2], [23 / 12, -16 / 12, 5 / 12], [55 / 24, -59 / 24, 37 / 24, -9 / 24]]
    past = []
    for here, there in pairwise(levels):
        past.insert(0, denoise(state, here).eps)
        coefficients = table[min(len(past), 4) - 1]
        state = state + (there.sigma - here.sigma) * sum(c * e for c, e in zip(coefficients, past, strict=False))
    torch.testing.assert_close(run(Ipndm(), denoise, levels, x), state, rtol=0, atol=1e-9)


def test_ipndm_v_integrates_its_polynomial():
    """On eps that is a polynomial of degree k - 1 in sigma the variable steps are exact once the history is full."""
    process, k = Edm(), 4
    levels = Karras(steps=9).levels(process)
    eps = lambda sigma: 1 + 2 * sigma - 0.3 * sigma**2 + 0.01 * sigma**3  # noqa: E731
    whole = lambda sigma: sigma + sigma**2 - 0.1 * sigma**3 + 0.0025 * sigma**4  # noqa: E731

    def answer(x, level, told, cond):
        return Prediction(x - level.sigma * eps(level.sigma), torch.ones_like(x) * eps(level.sigma))

    denoise, memory, x = Wrapped(process, answer), None, torch.zeros(1, 1, 1, 1, dtype=torch.float64)
    for index, (here, there) in enumerate(pairwise(levels)):
        x_next, _, memory = IpndmV(k=k).step(denoise, x, Position(index, levels, here, there), memory, None)
        if index >= k - 1:
            torch.testing.assert_close(
                float(x_next - x), float(whole(there.sigma) - whole(here.sigma)), rtol=1e-9, atol=1e-9
            )
        x = x_next


@pytest.mark.parametrize("h", [1e-6, 1e-3, 0.3, 0.499, 0.501, 2.0, 20.0])
def test_exponential_moments_are_the_integrals(h):
    """h * integral of exp(-h (1 - r)) r^n by quadrature; at h = inf all are 1."""
    from snrkit.sampling.solvers.multistep import exponential_moments

    points, weights = (torch.from_numpy(part) for part in np.polynomial.legendre.leggauss(60))
    r, weights = (points + 1) / 2, weights / 2
    for n, moment in enumerate(exponential_moments(tensor(h), 3), start=1):
        torch.testing.assert_close(moment, h * (weights * torch.exp(-h * (1 - r)) * r**n).sum(), rtol=1e-10, atol=0)
    assert all(float(m) == 1 for m in exponential_moments(tensor(math.inf), 3))


class Exact:
    """Sources that know E|eps_hat|^2 of N(mean, variance) in closed form."""

    def __init__(self, variance):
        self.variance = variance

    def forward(self, levels):
        squares = torch.stack([lv.sigma**2 / (lv.alpha**2 * self.variance + lv.sigma**2) for lv in levels])
        return ForwardStatistics(squares, squares)


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("steps", [1, 2, 7])
@pytest.mark.parametrize("process", THREE.values(), ids=THREE)
def test_analytic_variance_is_exact_on_gaussian_data(process, steps, eta):
    """With Analytic-DPM's variance the states of isotropic Gaussian data have the right variance after any step."""
    levels = uniform_levels(process, steps, low=-4, high=4)
    solver = AnalyticDpm(eta=eta).open(Exact(VARIANCE), levels)
    marginal = lambda level: level.alpha**2 * VARIANCE + level.sigma**2  # noqa: E731
    denoise = gaussian(process)
    for index, (here, there) in enumerate(pairwise(levels)):
        position, zero = Position(index, levels, here, there), torch.zeros(1, 1, 1, 1, dtype=torch.float64)
        ends = [solver.step(denoise, x, position, None, lambda _, n=n: n)[0] for x, n in
                ((zero, zero), (zero + 1, zero), (zero, zero + 1))]  # fmt: skip
        found = (ends[1] - ends[0]) ** 2 * marginal(here) + (ends[2] - ends[0]) ** 2
        torch.testing.assert_close(found.squeeze(), marginal(there), rtol=1e-12, atol=0)


def test_analytic_dpm_is_the_published_variance():
    """b (1 - abar')/(1 - abar) + abar' b^2/(1 - abar)^2 cov0 of a DDPM step, and the cap in the last but one."""
    process, square = Ddpm(), 0.7
    chosen = [process.level(process.logsnr(tensor(t))) for t in (600.0, 400.0, 100.0)]
    levels = (*chosen, process.level(tensor(math.inf)))

    class Known(Dummy):
        def forward(self, noisy):
            squares = torch.full((len(noisy),), square, dtype=torch.float64)
            return ForwardStatistics(squares, squares)

    known = Known(process)
    zero, one = torch.zeros(1, 1, 1, 1, dtype=torch.float64), torch.ones(1, 1, 1, 1, dtype=torch.float64)
    for index, cap in ((0, None), (1, None), (0, 2.0), (1, 2.0)):
        solver = AnalyticDpm(last_noise=cap).open(known, levels)
        here, there = levels[index], levels[index + 1]
        position = Position(index, levels, here, there)
        dummy = Wrapped(process, lambda x, level, told, cond: Prediction(torch.zeros_like(x), x))
        spread = [solver.step(dummy, zero, position, None, lambda _, n=n: n)[0] for n in (zero, one)]
        abar, abar_next = here.alpha**2, there.alpha**2
        b = 1 - abar / abar_next
        cov = ((1 - abar) / abar * (1 - square)).clamp(0, 1)
        wanted = b * (1 - abar_next) / (1 - abar) + abar_next * b**2 / (1 - abar) ** 2 * cov
        if cap is not None and index == 1:
            wanted = torch.minimum(wanted, tensor((cap * 2 / 255 * math.sqrt(math.pi / 2)) ** 2))
        torch.testing.assert_close(((spread[1] - spread[0]) ** 2).squeeze(), wanted, rtol=1e-9, atol=0)


def test_analytic_dpm_counts_one_evaluation_a_step_and_refuses_pure_noise():
    """What it measures beforehand is no cost of an image; at alpha = 0 its variance is undefined."""
    from snrkit.base.errors import SnrkitError
    from snrkit.diffusion.prediction import X0

    sampler = Sampler(grid=Karras(steps=7), solver=AnalyticDpm())
    assert dry_run(sampler, Edm(), X0(), (1, 4, 4)) == 7
    with pytest.raises(SnrkitError, match="alpha = 0"):
        open_with(Sampler(grid=UniformTime(steps=7), solver=AnalyticDpm()), Flow(), Dummy(Flow()))


def test_ancestral_cut_offs_stop_fresh_noise():
    """Between the cut-offs steps are ancestral, beyond them Euler's, bit for bit."""
    process = Edm()
    levels = UniformLogsnr(steps=8, logsnr_min=-6, logsnr_max=6).levels(process)
    solver = Ancestral(logsnr_min=-3, logsnr_max=3)
    x, draw = torch.randn(2, 1, 2, 2, dtype=torch.float64), torch.randn(2, 1, 2, 2, dtype=torch.float64)
    for index, (here, there) in enumerate(pairwise(levels)):
        position = Position(index, levels, here, there)
        ends = [s.step(mixture(process), x, position, None, lambda _: draw)[0] for s in (solver, Ancestral(), Euler())]
        assert torch.equal(ends[0], ends[1] if -3 <= float(here.logsnr) <= 3 else ends[2])


def test_ancestral_cut_offs_are_each_images_own():
    """With a level per image only those between the cut-offs get fresh noise."""
    process, solver = Edm(), Ancestral(logsnr_min=-3, logsnr_max=3)
    here, there = process.level(tensor([0.0, 5.0])), process.level(tensor([1.0, 6.0]))
    x = torch.randn(2, 1, 2, 2, dtype=torch.float64)
    draw = torch.randn(2, 1, 2, 2, dtype=torch.float64)
    position = Position(0, (here, there), here, there)
    ends = [s.step(mixture(process), x, position, None, lambda _: draw)[0] for s in (solver, Ancestral(), Euler())]
    torch.testing.assert_close(ends[0][0], ends[1][0], rtol=0, atol=1e-12)
    torch.testing.assert_close(ends[0][1], ends[2][1], rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Ancestral(eta=0.0, logsnr_max=1.0), "no effect at eta 0"),
        (lambda: Ancestral(logsnr_min=2.0, logsnr_max=1.0), "must not be above"),
        (lambda: Ancestral(eta=0.5, variance="large"), "whose eta is 1"),
        (lambda: Churn(s_min=2.0, s_max=1.0), "must not be above"),
    ],
)
def test_settings_that_would_never_act_are_refused(make, said):
    """A range the wrong way round, or cut-offs of noise that is not there."""
    with pytest.raises(ValueError, match=said):
        make()


def test_churn_stays_on_a_table():
    """EDM's algorithm rounds the raised level to the network's own: what it is told is an entry of its table."""
    process, told = Ddpm(), []

    def answer(x, level, told_level, cond):
        told.append(level)
        return Prediction(torch.zeros_like(x), x / level.sigma)

    levels = Trailing(steps=10).levels(process)
    x = torch.randn(2, 1, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    list(sample(Wrapped(process, answer), Churn(s_churn=4, s_min=0, s_max=None), levels, x, noise=torch.ones_like))
    times = torch.stack([process.time(level.logsnr) for level in told])
    assert len(times) == 19
    torch.testing.assert_close(times, times.round(), rtol=0, atol=1e-6)
