"""Probes of measure-shift: each reads its null with an exact denoiser and many steps, and known errors as such."""

import math
from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from snrkit.base.distributed import World
from snrkit.base.frequency import haar, pixels, rings, views
from snrkit.base.wavelet import low_part
from snrkit.data.toy import Gaussian, Mixture
from snrkit.diffusion.denoiser import EdmPrecondition
from snrkit.diffusion.prediction import X0, Cond, Eps, Prediction, Wrapped
from snrkit.diffusion.process import Ddpm, Edm, Flow
from snrkit.sampling.corrections import ClassifierFreeGuidance, Dcw, EpsilonScaling
from snrkit.sampling.corrections.guidance import Guided, Term
from snrkit.sampling.flow import Flow as Walk
from snrkit.sampling.grid import Karras, UniformLogsnr, UniformTime
from snrkit.sampling.refine import refined
from snrkit.sampling.sample import sample, start
from snrkit.sampling.sampler import Dummy, Sampler, open_with, opened_solver
from snrkit.sampling.solvers import AnalyticDpm, Ancestral, Churn, Dpmpp2m, Euler, Heun, Unipc
from snrkit.sampling.solvers.ancestral import AnalyticSteps
from snrkit.shift.amplification import gaussian_gain, measure_gain, modes, read_gain
from snrkit.shift.arms import forward_arm, noised, reverse_arm
from snrkit.shift.audit import audit_probe
from snrkit.shift.bootstrap import Bootstrap
from snrkit.shift.control import mode_powers, of_bands, of_covariance, solve_for
from snrkit.shift.estimated_level import read_estimator, respond
from snrkit.shift.estimator import Estimator, EstimatorConfig, calibrate, fit, make_estimator
from snrkit.shift.flow_distance import read_distance
from snrkit.shift.horizon import horizon_arms, read_horizon
from snrkit.shift.nearest import misfits, nearest_shift
from snrkit.shift.states import StateReader
from snrkit.shift.why import WhyProbe, fine_reference, reference_solver
from snrkit.shift.window import OFFSETS, invert, read_window, window_arm
from snrkit.training.config import TrainConfig
from snrkit.training.holdout import training_pairs
from snrkit.training.level_samplers import LogNormal
from snrkit.training.objective import Objective
from snrkit.training.perturb import InputPerturbation
from snrkit.training.task import Task
from snrkit.training.weighting import EdmWeighting
from tests.exact import gaussian, tensor
from tests.sampling.test_corrections import control
from tests.shift.test_shift import COUNT, SHAPE, VARIANCE, clean, reference

CPU = torch.device("cpu")
BOOT = Bootstrap(200, 0.95, 0)


def ready_of(grid, solver, process, corrections=()):
    return open_with(Sampler(grid=grid, solver=solver, corrections=corrections), process, Dummy(process))


def walked(ready, x, denoise):
    return sample(denoise, ready.solver, ready.levels, x)


def forward(denoise, levels, seed=1):
    return forward_arm(
        denoise, levels, clean(COUNT, seed), torch.arange(COUNT), Cond(), key=(9, seed), batch=300, device=CPU,
        reader=reference(denoise.process).reader(levels, {}),
    )  # fmt: skip


@given(height=st.integers(2, 9), width=st.integers(2, 9))
def test_views_are_orthonormal(height, width):
    """Energy is kept (but for an odd last row or column in Haar), and every part's coordinates are counted once."""
    x = torch.randn(3, 2, height, width, dtype=torch.float64)
    for view in (pixels((2, height, width)), rings((2, height, width))):
        torch.testing.assert_close(view.coordinates(x).square().sum(1), x.square().sum((1, 2, 3)))
        assert set(view.parts.tolist()) == set(range(len(view.names)))
    even = x[..., : height - height % 2, : width - width % 2]
    bands = haar((2, height, width)).coordinates(x)
    torch.testing.assert_close(bands.square().sum(1), even.square().sum((1, 2, 3)))
    assert len(views((1, 1, 1))) == 1


def test_rings_are_rings_of_frequency():
    """A cosine of k cycles lies in the ring of its own frequency alone."""
    view, n = rings((1, 16, 16)), torch.arange(16, dtype=torch.float64)
    for k, ring in ((0, 0), (4, 4), (8, 7)):
        wave = torch.cos(2 * math.pi * k * n / 16).expand(16, 16)
        power = view.coordinates(wave[None, None]).square()[0]
        share = torch.zeros(len(view.names), dtype=torch.float64).index_add_(0, view.parts, power) / power.sum()
        expected = round(k / 8 * (len(view.names) - 1))
        assert float(share[expected]) == pytest.approx(1)
        assert expected == ring


@pytest.mark.parametrize("process", [Edm(), Ddpm(), Flow()], ids=lambda p: p.kind)
def test_nearest_level_of_forward_samples_is_their_own(process):
    """0 on average within error, and a state made at another level reads that level."""
    denoise, known = gaussian(process, 0.0, VARIANCE, SHAPE), reference(process).spectrum
    levels = [process.level(tensor(v)) for v in (-2.0, 0.0, 2.0)]
    arm, weights = forward(denoise, levels), BOOT.weights(torch.arange(COUNT), 0)
    found = nearest_shift(arm.of_states.misfits, weights)
    for row in found:
        assert row.quantile(0.005) <= 0 <= row.quantile(0.995)
        assert abs(float(row[0])) < 0.25
    states = noised(clean(COUNT, 1), levels[0], (9, 1, 0))
    moved = nearest_shift(misfits(states, process.level(tensor(-1.5)), known)[None], weights[:1])
    assert float(moved) - float(found[0, 0]) == pytest.approx(-0.5, abs=0.01)


@pytest.mark.parametrize("process", [Edm(), Flow()], ids=lambda p: p.kind)
def test_the_window_of_gaussian_data_is_its_closed_form(process):
    """M[s, t] and E[s, t] of the exact linear denoiser, its slope, and the shift that a known noisier state reads."""
    denoise, logsnr = gaussian(process, 0.0, VARIANCE, SHAPE), torch.linspace(-4, 1, 7, dtype=torch.float64)
    levels = [process.level(v) for v in logsnr]
    arm = window_arm(denoise, levels, clean(COUNT, 4), torch.arange(COUNT), Cond(), key=(9, 4), batch=300, device=CPU)
    total = lambda level: float(level.alpha**2 * VARIANCE + level.sigma**2)  # noqa: E731
    for s, told in enumerate(levels):
        eps_gain = float(told.sigma) / total(told)
        x0_gain = float(told.alpha) * VARIANCE / total(told)
        for t, here in enumerate(levels):
            m, e = float(arm.eps_square[s, t].mean()), float(arm.error[s, t].mean())
            assert m == pytest.approx(eps_gain**2 * total(here), rel=0.06)
            bias = (x0_gain * float(here.alpha) - 1) ** 2 * VARIANCE
            assert e == pytest.approx(bias + x0_gain**2 * float(here.sigma**2), rel=0.1)
    null = torch.zeros(7, 201, dtype=torch.float64)
    shift = -0.3  # states this much noisier than told, everywhere
    gaps = [math.log(total(process.level(lv.logsnr + shift)) / total(lv)) for lv in levels]
    found = read_window(arm, levels, torch.tensor(gaps).double()[:, None].expand(7, 201), null, BOOT)
    assert (torch.tensor(found.excess).diagonal() == 0).all()
    assert float(torch.tensor(found.excess).min()) > -0.01
    for i, here in enumerate(levels):
        ends = [total(process.level(here.logsnr + way * 0.25)) for way in (-1, 1)]
        assert found.slope.value[i] == pytest.approx(2 * math.log(ends[1] / ends[0]), rel=0.15)
    assert found.equivalent_shift.value == pytest.approx([shift] * 7, rel=0.2)
    assert found.equivalent_shift_null.value == pytest.approx([0.0] * 7, abs=1e-9)
    assert found.mean_equivalent_shift.value == pytest.approx(shift, rel=0.1)
    assert found.levels_read == 7


@given(rise=st.floats(-5, 5), bend=st.floats(-0.3, 0.3), way=st.sampled_from([-1, 1]))
def test_inverting_the_curve(rise, bend, way):
    """On a monotone curve over the offsets: exact where it is linear, and on a knot whatever the bend."""
    offsets = torch.tensor(OFFSETS, dtype=torch.float64)[:, None]
    linear = way * 1.7 * offsets
    assert float(invert(linear, tensor([rise]))) == pytest.approx(way * rise / 1.7, abs=1e-9)
    assert float(invert(linear, tensor([9.0]))) == way * 3.0  # no farther
    curve = way * (offsets + bend * offsets**2)
    for k in range(len(OFFSETS)):
        assert float(invert(curve, curve[k])) == pytest.approx(OFFSETS[k], abs=1e-9)


def test_no_shift_is_reported_where_the_slope_is_none():
    """Unit-variance Gaussian data in vp: the norm says nothing of the level, so no shift is made of a gap."""
    process = Ddpm()
    denoise, levels = gaussian(process, 0.0, 1.0, SHAPE), [process.level(tensor(v)) for v in (-2.0, 0.0, 2.0)]
    arm = window_arm(
        denoise, levels, 2 * clean(COUNT, 4), torch.arange(COUNT), Cond(), key=(9, 4), batch=300, device=CPU
    )
    gap = torch.full((3, 201), 0.1, dtype=torch.float64)
    found = read_window(arm, levels, gap, gap, BOOT)
    assert any(math.isnan(v) for v in found.equivalent_shift.value)


@pytest.mark.parametrize("process", [Edm(), Ddpm(), Flow()], ids=lambda p: p.kind)
@pytest.mark.parametrize("steps", [1, 3])
def test_the_short_horizon_of_an_exact_denoiser_and_fine_steps_is_null(process, steps):
    """Right states walked a few small Heun steps stay right; one coarse Euler step loses the variance it must lose."""
    denoise = gaussian(process, 0.0, VARIANCE, SHAPE)
    for grid, solver, fine in ((UniformLogsnr(steps=30, logsnr_min=-4, logsnr_max=6), Heun(), True),
                               (UniformLogsnr(steps=6, logsnr_min=-4, logsnr_max=6), Euler(), False)):  # fmt: skip
        ready = ready_of(grid, solver, process)
        levels = ready.levels[:-1]
        arm = forward(denoise, levels)
        known = reference(process)
        arms = horizon_arms(
            denoise, ready, clean(COUNT, 1), arm, Cond(), steps, range(COUNT), known.pixel_reader(levels[steps:]),
            key=(9, 1), batch=300, device=CPU,
        )  # fmt: skip
        found = read_horizon(*arms, ready, steps, known, BOOT)
        assert len(found.logsnr) == len(levels) - steps
        if fine:
            assert abs(found.mean_log_variance_ratio.value) < 0.02
            assert abs(found.mean_norm_gap.value) < 0.02
        elif steps == 1:
            for i, (here, there) in enumerate(pairwise(levels)):
                before, after = (float(lv.alpha**2 * VARIANCE + lv.sigma**2) for lv in (here, there))
                gain = float(here.alpha * there.alpha * VARIANCE + here.sigma * there.sigma) / before
                wanted = gain**2 * before / after
                assert found.variance_ratio.value[i] == pytest.approx(wanted, rel=0.06)


@pytest.mark.parametrize("process", [Edm(), Ddpm(), Flow()], ids=lambda p: p.kind)
@pytest.mark.parametrize("solver", [Heun(), Dpmpp2m()], ids=lambda s: s.kind)
def test_amplification_of_gaussian_data_is_the_exact_flows(process, solver):
    """Gain sqrt(v/(alpha^2 v + sigma^2)) in every part, with fine steps; the error's size does not matter."""
    grid = UniformTime(steps=200) if process.kind == "ddpm" else UniformLogsnr(steps=60, logsnr_min=-6, logsnr_max=8)
    ready = ready_of(grid, solver, process)
    denoise, levels = gaussian(process, 0.0, VARIANCE, SHAPE), ready.levels[:-1]
    noise = torch.randn(8, *SHAPE, generator=torch.Generator().manual_seed(1))

    def walk(error, nudges):
        x = start(process, noise, levels[0], VARIANCE) + error
        return sample(denoise, ready.solver, ready.levels, x, corrections=(*ready.corrections, *nudges))

    spread = torch.stack([(lv.alpha**2 * VARIANCE + lv.sigma**2).sqrt() for lv in levels])
    found = measure_gain(walk, levels[:2], (8, *SHAPE), spread, 0, CPU)
    known = modes(VARIANCE * torch.eye(16, dtype=torch.float64), SHAPE)
    read = read_gain(found, levels[:2], gaussian_gain(known, levels[:2], False), BOOT)
    assert set(read.gain) == {"all", "low", "high"}
    first = process.level(levels[0].logsnr)
    assert read.gaussian["all"][0] == pytest.approx(
        float((VARIANCE / (first.alpha**2 * VARIANCE + first.sigma**2)) ** 0.5)
    )
    for part in read.gain:
        assert read.gain[part].value == pytest.approx(read.gaussian[part], rel=0.02)


def test_the_gain_of_the_chain_that_renews_all_noise():
    """alpha v/(alpha^2 v + sigma^2): read with Analytic-DPM's exact steps, which draw fresh noise."""
    process = Edm()
    ready = ready_of(UniformLogsnr(steps=12, logsnr_min=-4, logsnr_max=8), Euler(), process)
    levels = ready.levels[:-1]
    denoise = gaussian(process, 0.0, VARIANCE, SHAPE)
    solver = AnalyticSteps(
        AnalyticDpm(), torch.stack([VARIANCE * lv.sigma**2 / (VARIANCE + lv.sigma**2) for lv in levels])
    )
    noise = torch.randn(8, *SHAPE, generator=torch.Generator().manual_seed(1))

    def walk(error, nudges):
        draws = torch.Generator().manual_seed(2)
        x = start(process, noise, levels[0], VARIANCE) + error
        fresh = lambda s: torch.randn(s.shape, generator=draws, dtype=s.dtype)  # noqa: E731
        return sample(denoise, solver, ready.levels, x, corrections=nudges, noise=fresh)

    found = measure_gain(walk, levels, (8, *SHAPE), torch.ones(len(levels)), 0, CPU)
    known = modes(VARIANCE * torch.eye(16, dtype=torch.float64), SHAPE)
    read = read_gain(found, levels, gaussian_gain(known, levels, True), BOOT)
    for part in read.gain:
        assert read.gain[part].value == pytest.approx(read.gaussian[part], rel=1e-6)


def test_modes_weigh_an_error_by_the_directions_it_has():
    """White errors see tr(S (alpha^2 S + sigma^2)^-1)/D; low errors only what the low band holds of each direction."""
    process, rng = Flow(), torch.Generator().manual_seed(0)
    root = torch.randn(16, 16, generator=rng, dtype=torch.float64)
    covariance, level = root @ root.T / 16, process.level(tensor(0.5))
    found = gaussian_gain(modes(covariance, SHAPE), [level], False)
    flow = torch.linalg.solve(level.alpha**2 * covariance + level.sigma**2 * torch.eye(16).double(), covariance)
    assert found["all"][0] ** 2 == pytest.approx(float(flow.trace()) / 16)
    low = low_part(torch.eye(16, dtype=torch.float64).reshape(16, *SHAPE)).flatten(1)
    assert found["low"][0] ** 2 == pytest.approx(float((low @ flow).trace() / low.trace()))
    rest = torch.eye(16, dtype=torch.float64) - low
    assert found["high"][0] ** 2 == pytest.approx(float((rest @ flow).trace() / rest.trace()))


def a_task(process, target, **settings):
    data = Mixture(shape=(1, 4, 4), count=512).open()
    config = TrainConfig(images=10_000, batch=64, **settings)
    objective = Objective(process, target, EdmPrecondition(), LogNormal(), EdmWeighting(), 0.5)
    return Task(config, objective, data, tuple(range(512)), (), 0, World(0, 1, CPU))


@pytest.mark.parametrize("process", [Edm(), Ddpm(), Flow()], ids=lambda p: p.kind)
@pytest.mark.parametrize("target", [X0(), Eps()], ids=lambda t: t.kind)
def test_training_pairs_are_at_the_level_that_is_told(process, target):
    """alpha and sigma recovered by regression at the network's door are the nominal ones, whatever the process."""
    pairs = training_pairs(a_task(process, target, noise_dropout=0.2), 2048)
    assert 1400 < len(pairs.x0) < 1900  # those of noise dropout are told nothing
    assert len(pairs.x0) + pairs.untold == 2048
    found = audit_probe(pairs, 0.5, 6, BOOT)
    for curve, within in ((found.alpha, 0.05), (found.sigma, 0.03)):
        strong = [v for v, s in zip(curve.value, found.logsnr, strict=True) if curve is found.sigma or s > -2]
        assert max(abs(v - 1) for v in strong) < within
        held = [lo <= 1 <= hi for lo, hi in zip(curve.low, curve.high, strict=True)]
        assert sum(held) >= len(held) - 1


def test_the_variance_beside_the_flow_s_is_about_the_mean():
    """Images that keep their mean and lose a tenth of their spread have 0.81 of the variance, wherever the mean is."""
    images = torch.randn(400, 1, 4, 4, generator=torch.Generator().manual_seed(0)).double() * 0.3 - 0.7
    shrunk = images.mean(0) + 0.9 * (images - images.mean(0))
    found = read_distance(shrunk, Walk((images, images), (0.0, 0.0), 1), [], [])
    assert found.variance == pytest.approx(0.81)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_states_that_are_not_finite_are_not_near_the_flow(value):
    """Their distance is no number, nor are its bounds; before, they were 0 and the flow's own error."""
    images = torch.randn(40, 1, 4, 4, generator=torch.Generator().manual_seed(0)).double()
    broken = images.clone()
    broken[7, 0, 0, 0] = value
    found = read_distance(broken, Walk((images, images), (0.0, 1e-5), 1), [], []).distance
    assert all(map(math.isnan, (found.value, found.low, found.high)))


def test_the_audit_sees_input_perturbation():
    """DDPM-IP with gamma makes sigma_hat/sigma = sqrt(1 + gamma^2) and leaves alpha."""
    gamma = 0.5
    pairs = training_pairs(a_task(Edm(), X0(), perturb=InputPerturbation(gamma=gamma)), 2048)
    found = audit_probe(pairs, 0.5, 4, BOOT)
    assert sum(found.sigma.value) / 4 == pytest.approx(math.sqrt(1 + gamma**2), rel=0.01)
    assert found.alpha.value[-1] == pytest.approx(1, abs=0.02)


def split(sampler, denoise, process, count=COUNT):
    """(What the probe `why` reads of a sampler on Gaussian data, the arm of the sampler)."""
    specimen = specimen_of(sampler, denoise, process, count)
    return WhyProbe().read(specimen), specimen.reverse


def specimen_of(sampler, denoise, process, count):
    """A sampler on Gaussian data, under the instrument."""
    ready, known = open_with(sampler, process, Dummy(process)), reference(process, count=count)
    levels = ready.levels[:-1]

    def walk(sampler, own, places, reader):
        drawn = torch.Generator().manual_seed(len(own.levels))
        noise = torch.randn(count, *SHAPE, generator=torch.Generator().manual_seed(7))
        x = start(process, noise, own.levels[0], VARIANCE)
        fresh = lambda s: torch.randn(s.shape, generator=drawn, dtype=s.dtype)  # noqa: E731
        steps = lambda d: sample(d, own.solver, own.levels, x, corrections=own.corrections, noise=fresh)  # noqa: E731
        return reverse_arm(denoise, [steps], places, count, reader)

    solver_on = lambda sampler, levels: opened_solver(sampler, Dummy(process), levels)  # noqa: E731
    reverse = walk(sampler, ready, range(len(levels)), known.pixel_reader(levels))
    return SimpleNamespace(
        seeds=range(count),
        sampler=sampler, ready=ready, denoise=denoise, levels=levels, reverse=reverse, reference=known, bootstrap=BOOT,
        forward=forward_arm(denoise, levels, clean(count, 1), torch.arange(count), Cond(), key=(9, 1), batch=600,
                            device=CPU, reader=known.reader(levels, {})),
        equipment=SimpleNamespace(walk=walk, solver_on=solver_on),
    )  # fmt: skip


def test_why_does_not_say_how_many_evaluations_a_solver_takes_that_draws_noise():
    """It may take one or two a step."""
    exact = gaussian(Edm(), 0.0, VARIANCE, SHAPE)
    for solver in (Ancestral(), Churn(s_churn=3)):
        sampler = Sampler(grid=Karras(steps=7), solver=solver)
        assert WhyProbe().evaluations(specimen_of(sampler, exact, Edm(), 3)) is None


@pytest.mark.parametrize(("solver", "steps"), [(Euler(), 7), (Heun(), 12)])
def test_why_says_how_many_evaluations_it_takes(solver, steps):
    """As a network is asked, to a tenth."""
    asked, exact, sampler = [], gaussian(Edm(), 0.0, VARIANCE, SHAPE), Sampler(grid=Karras(steps=steps), solver=solver)
    counting = Wrapped(exact.process, lambda x, level, told, cond: asked.append(len(x)) or exact(x, level))
    specimen = specimen_of(sampler, counting, Edm(), 3)
    asked.clear()
    WhyProbe().read(specimen)
    assert WhyProbe().evaluations(specimen) == pytest.approx(sum(asked), rel=0.1)


def erring(exact, share=0.1):
    """A denoiser whose x0 is too large by a share."""

    def answer(x, level, told, cond):
        x0 = exact(x, level).x0 * (1 + share)
        return Prediction(x0, (x - level.alpha * x0) / level.sigma)

    return Wrapped(exact.process, answer)


def test_why_splits_the_solver_from_the_network():
    """With an exact denoiser the network's share is 0 and the solver's is all; a network that errs keeps its share, and
    so does one whose answers are corrected."""
    exact, sampler = gaussian(Edm(), 0.0, VARIANCE, SHAPE), Sampler(grid=Karras(steps=7), solver=Euler())
    found, wrong = (split(sampler, each, Edm())[0].log_variance_ratio for each in (exact, erring(exact)))
    assert abs(found.mean_network.value) < 0.03
    assert found.mean_solver.value < -0.05
    assert wrong.mean_network.value > 0.05
    corrected = sampler.model_copy(update={"corrections": (EpsilonScaling(scale=1.1),)})
    scaled = split(corrected, exact, Edm())[0].log_variance_ratio
    assert scaled.network == found.network
    assert scaled.mean_solver.value > found.mean_solver.value + 0.5


@pytest.mark.parametrize("steps", [7, 40])
@pytest.mark.parametrize("solver", [Euler(), Heun(), Unipc(p=3)], ids=lambda s: s.kind)
@pytest.mark.parametrize("process", [Edm(), Ddpm(), Flow()], ids=lambda p: p.kind)
def test_the_solver_s_share_covers_the_truth(process, solver, steps):
    """The exact flow of Gaussian data multiplies every state by one number, so that what a solver adds to the ln of the
    variance is known without error, and its interval is the error of the reference alone."""
    grid = Karras(steps=steps) if process.kind == "edm" else UniformLogsnr(steps=steps, logsnr_min=-7, logsnr_max=7)
    sampler, exact = Sampler(grid=grid, solver=solver), gaussian(process, 0.0, VARIANCE, SHAPE)
    found, reverse = split(sampler, exact, process, 20)
    levels = open_with(sampler, process, Dummy(process)).levels[:-1]
    total = [float(lv.alpha**2 * VARIANCE + lv.sigma**2) for lv in levels]
    seen = reverse.eps_square.mean(1)  # of a linear denoiser: |x|^2 sigma^2/total^2
    power = [float(e) * t**2 / float(lv.sigma**2) for e, t, lv in zip(seen, total, levels, strict=True)]
    truth = sum(math.log(p / power[0] * total[0] / t) for p, t in zip(power, total, strict=True)) / len(levels)
    for shares in (found.norm_gap, found.log_variance_ratio):
        assert shares.mean_solver.low - 1e-6 <= truth <= shares.mean_solver.high + 1e-6
        assert shares.error < (2e-3 if process.kind == "ddpm" else 1e-4)  # a table's levels are not cut evenly


def ancestral_variances(levels, share):
    """Variances of the states of ancestral steps, with the denoiser of N(0, VARIANCE) whose x0 errs by a share."""
    found = [VARIANCE + float(levels[0].sigma) ** 2]
    for here, there in pairwise([float(level.sigma) for level in levels[:-1]]):
        gain, fresh = (1 + share) * VARIANCE / (VARIANCE + here**2), 1 - (there / here) ** 2
        kept = gain + there * math.sqrt(1 - fresh) * (1 - gain) / here
        found.append(kept**2 * found[-1] + there**2 * fresh)
    return found


@pytest.mark.parametrize(("steps", "share"), [(13, 0.0), (40, 0.05)])
def test_a_solver_that_draws_noise_is_held_against_its_own_process(steps, share):
    """Ancestral steps of an erring network: what is the solver's is what finer ancestral steps do not have."""
    exact, grid = gaussian(Edm(), 0.0, VARIANCE, SHAPE), UniformLogsnr(steps=steps, logsnr_min=-7, logsnr_max=7)
    sampler = Sampler(grid=grid, solver=Ancestral())
    levels, fine = grid.levels(Edm()), refined(grid.levels(Edm()), Edm(), 200)
    limit = [ancestral_variances(fine.levels, share)[place] for place in fine.visited[:-1]]
    truth = [math.log(v / w) for v, w in zip(ancestral_variances(levels, share), limit, strict=True)]
    found = split(sampler, erring(exact, share), Edm(), 2000)[0].log_variance_ratio
    assert found.mean_solver.low <= sum(truth) / steps <= found.mean_solver.high
    assert found.mean_solver.high - found.mean_solver.low < 0.12


def test_noise_is_refined_as_it_is_drawn():
    """An erring network under churn is another process than its flow; what these differ by is not the solver's."""
    exact = erring(gaussian(Edm(), 0.0, VARIANCE, SHAPE), 0.3)
    churned = Sampler(grid=UniformLogsnr(steps=60, logsnr_min=-7, logsnr_max=7), solver=Churn(s_churn=20))
    plain = churned.model_copy(update={"solver": Heun()})
    found, flow = (split(each, exact, Edm())[0].log_variance_ratio for each in (churned, plain))
    apart = found.mean_network.value - flow.mean_network.value
    assert apart > 0.2
    assert abs(found.mean_solver.value) < apart / 2


@pytest.mark.parametrize("span", [{}, {"logsnr_min": -1.0, "logsnr_max": 2.0}], ids=["everywhere", "interval"])
def test_guidance_is_of_the_network_whose_shift_is_split(span):
    """The reference of a guided sampler walks the trajectories of the guided network, in the steps that are guided."""
    process, known = Edm(), gaussian(Edm(), 0.0, VARIANCE, SHAPE)

    def labelled(x, level, told, cond):  # one mean with the label, another without
        mean = 0.2 * (cond.labels >= 0).double().view(-1, 1, 1, 1)
        shifted = known(x - mean, level)
        return Prediction(shifted.x0 + mean, shifted.eps)

    base, cfg = Wrapped(process, labelled), ClassifierFreeGuidance(weight=2.0, **span)
    sampler = Sampler(grid=Karras(steps=6), solver=Euler(), corrections=(cfg, Dcw(pixel=0.1)))
    ready = open_with(sampler, process, Dummy(process))
    solver = reference_solver(sampler, ready)
    assert solver == (Heun() if span else Unipc(p=3))
    reference, visited = fine_reference(sampler, ready, process, 10, solver)
    x = start(process, torch.randn(4, *SHAPE, generator=torch.Generator().manual_seed(0)), ready.levels[0])
    cond = Cond(labels=torch.zeros(4, dtype=torch.int64))
    guided = Wrapped(process, lambda x, level, told, cond: Guided(base, [unlabelled])(x, level, cond=cond))
    unlabelled = Term(torch.tensor(2.0, dtype=torch.float64), unlabelled=True)
    places, expected = (*visited, len(reference.levels) - 1), x
    for place, ends in enumerate(pairwise(places) if span else [(0, places[-1])]):
        inside = cfg.everywhere or -1.0 <= float(ready.levels[place].logsnr) <= 2.0
        steps = sample(guided if inside else base, solver, reference.levels, expected, cond=cond, steps=range(*ends))
        expected = [step.x_next for step in steps][-1]
    walk = sample(base, reference.solver, reference.levels, x, corrections=reference.corrections, cond=cond)
    torch.testing.assert_close([step.x_next for step in walk][-1], expected, rtol=0, atol=0)


def test_the_estimator_is_calibrated_and_reads_a_known_shift():
    """Fitted on Gaussian images it finds levels of held-out ones without bias, covers, and sees states made noisier."""
    process, data = Edm(sigma_min=0.05, sigma_max=20), Gaussian(shape=(1, 8, 8), count=2048).open()
    config = EstimatorConfig(images=40_000, batch=128, bins=32, channels=8)
    estimator = make_estimator(config, process.bounds, 1, 0)
    rng, (low, high) = torch.Generator().manual_seed(0), process.bounds

    def batches(count):
        while True:
            rows = torch.randint(2048, (count,), generator=rng)
            logsnr = low + (high - low) * torch.rand(count, generator=rng, dtype=torch.float64)
            level, x0 = process.level(logsnr), data.x0(rows.tolist()).double()
            alpha, sigma = level.scales(x0)
            yield alpha * x0 + sigma * torch.randn(x0.shape, generator=rng), logsnr

    losses = [loss for _, loss in fit(estimator, batches(128), config, CPU)]
    assert sum(losses[-20:]) / 20 < losses[0] - 1
    states, logsnr = next(batches(1000))
    found = calibrate(estimator, states, logsnr)
    assert found.error < 1.2
    assert found.coverage == pytest.approx(0.9, abs=0.08)
    levels = [process.level(tensor(v)) for v in (-5.0, -2.0, 0.0)]  # the first almost at the end of the bounds
    denoise = gaussian(process, 0.0, 0.25, (1, 8, 8))
    x0 = data.x0(range(400)).double()
    seen = StateReader(levels, watches={"estimator": lambda states, _: estimator.mean(states)})
    at = lambda shift, noise: forward_arm(  # noqa: E731
        denoise, [process.level(lv.logsnr + shift) for lv in levels], x0, torch.arange(400), Cond(),
        key=(9, noise), batch=400, device=CPU, reader=seen,
    )  # fmt: skip
    response = respond(estimator, process, levels, x0, (9, 8))
    null, moved = (read_estimator(at(s, 6), at(0.0, 7), levels, response, BOOT) for s in (0.0, -0.4))
    assert null.mean_shift.low - 0.05 <= 0 <= null.mean_shift.high + 0.05
    assert moved.mean_shift.value == pytest.approx(-0.4, abs=0.1)
    silent = read_estimator(at(-0.4, 6), at(0.0, 7), levels, torch.tensor([1.0, 0.3, 1.0]), BOOT)
    assert math.isnan(silent.shift.value[1])
    assert silent.levels_read == 2


def test_coverage_is_nine_tenths_of_a_calibrated_estimator():
    """Levels drawn from q's own bins lie in its central 90 % nine times in ten; of an over-confident one less."""

    class Says(torch.nn.Module):
        def __init__(self, logits):
            super().__init__()
            self.logits = torch.nn.Parameter(logits)

        def forward(self, x):
            return self.logits.expand(len(x), -1)

    centres, rng = torch.linspace(-4, 4, 33, dtype=torch.float64), torch.Generator().manual_seed(0)
    logits = -(centres.float() ** 2) / 2
    bins = torch.multinomial(torch.softmax(logits, 0), 20_000, replacement=True, generator=rng)
    states = torch.zeros(20_000, 1, 1, 1)
    assert calibrate(Estimator(Says(logits), centres), states, centres[bins]).coverage == pytest.approx(0.9, abs=0.01)
    assert calibrate(Estimator(Says(4 * logits), centres), states, centres[bins]).coverage < 0.7


def test_the_estimators_gradient_is_that_of_its_density():
    """Against a finite difference; per image."""
    process = Edm()
    estimator = make_estimator(EstimatorConfig(bins=16, channels=4), process.bounds, 1, 0)
    x, logsnr = torch.randn(3, 1, 4, 4, dtype=torch.float64), tensor([0.3, -2.0, 5.1])
    gradient = estimator.gradient(x, logsnr)
    assert gradient.dtype == torch.float64
    step = 0.02 * gradient / gradient.square().flatten(1).sum(1).sqrt()[:, None, None, None]
    with torch.no_grad():
        difference = estimator.log_density(x + step, logsnr) - estimator.log_density(x - step, logsnr)
    torch.testing.assert_close(difference.double(), (2 * step * gradient).flatten(1).sum(1), rtol=0.02, atol=0)


@pytest.mark.parametrize(("solver", "steps"), [(Euler(), 13), (Heun(), 11), (Dpmpp2m(), 9)])
def test_the_band_control_is_the_scalar_control(solver, steps):
    """With equal variances every band's ratio is the square of the scalar recursion's."""
    process = Edm()
    ready = ready_of(Karras(steps=steps), solver, process)
    denoise = of_bands(process, torch.full((4,), 0.25, dtype=torch.float64))
    found = mode_powers(ready, denoise, lambda n: start(process, n, ready.levels[0], 0.25)) / 0.25
    torch.testing.assert_close(found, torch.full((4,), control(solver, steps, 0.25) ** 2, dtype=torch.float64))


def test_the_band_control_counts_fresh_noise():
    """Ancestral steps with an exact denoiser and fine steps keep the data's variance in every band."""
    process = Edm()
    ready = ready_of(UniformLogsnr(steps=400, logsnr_min=-8, logsnr_max=10), Ancestral(), process)
    variances = tensor([1.0, 0.3, 0.2, 0.1])
    found = mode_powers(ready, of_bands(process, variances), lambda n: start(process, n, ready.levels[0]))
    torch.testing.assert_close(found, variances, rtol=0.05, atol=0)


def covariance_of(shape, apart, seed=0):
    """A covariance with a steep spectrum; `apart`: with low and high Haar bands uncorrelated."""
    d = math.prod(shape)
    draws = torch.randn(3 * d, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    draws = (draws * torch.logspace(0, -3, d, dtype=torch.float64)).reshape(-1, *shape)
    if not apart:
        return torch.cov(draws.flatten(1).T, correction=0)
    low = low_part(draws)
    return sum(torch.cov(part.flatten(1).T, correction=0) for part in (low, draws - low))


@pytest.mark.parametrize("apart", [False, True])
def test_the_control_of_a_covariance_is_the_exact_denoiser(apart):
    """x0_hat = alpha C (alpha^2 C + sigma^2)^-1 x, per image where levels differ; the variances sum to the trace."""
    process, shape = Flow(), (2, 4, 4)
    covariance = covariance_of(shape, apart)
    denoise = of_covariance(process, covariance, shape, apart)
    assert float(denoise.variances.sum()) == pytest.approx(float(covariance.trace()), rel=1e-12)
    assert int(denoise.low.sum()) == (8 if apart else 0)
    torch.testing.assert_close(low_part(denoise.directions[denoise.low]), denoise.directions[denoise.low])
    x = torch.randn(3, *shape, dtype=torch.float64)
    level = process.level(tensor([-3.0, 0.0, 4.0]))
    for got, image, a, s in zip(denoise(x, level).x0, x, level.alpha, level.sigma, strict=True):
        total = a**2 * covariance + s**2 * torch.eye(len(covariance), dtype=torch.float64)
        torch.testing.assert_close(got.flatten(), a * covariance @ torch.linalg.solve(total, image.flatten()))


def test_one_walk_gives_the_variance_of_every_mode():
    """What one image of unit coefficients ends with is what a sampler does to the whole covariance, bands corrected."""
    process, shape = Edm(), (1, 4, 4)
    denoise = of_covariance(process, covariance_of(shape, True), shape, True)
    ready = ready_of(Karras(steps=6), Ancestral(eta=0.0), process, (Dcw(low=0.05, high=-0.02),))
    powers = mode_powers(ready, denoise, lambda n: start(process, n, ready.levels[0]))
    units = torch.eye(16, dtype=torch.float64).reshape(16, *shape)
    for step in sample(
        denoise, ready.solver, ready.levels, start(process, units, ready.levels[0]), corrections=ready.corrections
    ):
        whole = step.x_next
    final = whole.flatten(1).T @ whole.flatten(1)  # A A^T, the covariance that the sampler makes of white noise
    along = torch.einsum("di,ij,dj->d", denoise.directions.flatten(1), final, denoise.directions.flatten(1))
    torch.testing.assert_close(powers, along)


def test_the_predicted_coefficient_is_the_zero_error_controls():
    """Bisection on the band control finds the table's lambda and b (Euler, 13 steps, v = .25)."""
    process, variances = Edm(), torch.full((4,), 0.25, dtype=torch.float64)

    def ratio(make):
        def at(value):
            ready = ready_of(Karras(steps=13), Euler(), process, (make(value),))
            return float(
                mode_powers(ready, of_bands(process, variances), lambda n: start(process, n, ready.levels[0], 0.25))[0]
                / 0.25
            )

        return at

    assert solve_for(ratio(lambda v: Dcw(pixel=v)), -0.1, 0.1) == pytest.approx(0.0306, abs=5.1e-5)
    assert solve_for(ratio(lambda v: Dcw(low=v)), -0.1, 0.1) == pytest.approx(0.0306, abs=5.1e-5)
    assert solve_for(ratio(lambda v: EpsilonScaling(scale=v)), 0.9, 1.1) == pytest.approx(1.0341, abs=5.1e-5)
    assert solve_for(ratio(lambda v: Dcw(high=v)), -0.1, 0.1) is None
