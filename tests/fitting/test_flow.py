"""The fine flow: against exact flows and finer integrators, its stated error, and refined grids."""

import math
from itertools import pairwise

import pytest
import torch

from snrkit.diffusion.level import Level
from snrkit.diffusion.prediction import Cond, Prediction, Wrapped
from snrkit.diffusion.process import Ddpm, Edm, Flow
from snrkit.sampling.corrections import ClassifierFreeGuidance
from snrkit.sampling.flow import fine_flow, flow_evaluations, in_parts, rms
from snrkit.sampling.grid import Karras, UniformLogsnr, UniformTime
from snrkit.sampling.refine import parts_of, refined
from snrkit.sampling.sample import sample, start
from snrkit.sampling.sampler import Dummy, Sampler, guidance_of, open_with
from snrkit.sampling.solvers import Euler, Heun, Unipc
from tests.exact import PROCESSES, gaussian, gaussian_flow, mixture, run, tensor

NOISES = 32


def first(process, levels, shape=(1, 2, 2), noises=NOISES):
    draws = torch.Generator().manual_seed(3)
    return start(process, torch.randn(noises, *shape, generator=draws, dtype=torch.float64), levels[0])


@pytest.mark.parametrize("name", PROCESSES)
def test_the_flow_of_gaussian_data_is_the_closed_form(name):
    """At every level of the grid, within the error that is stated, which is small."""
    process = PROCESSES[name]
    levels = UniformLogsnr(steps=6, logsnr_min=-6, logsnr_max=6).levels(process)
    x = first(process, levels)
    found = fine_flow(gaussian(process, shape=(1, 2, 2)), levels, x)
    for level, state, error in zip(levels[:-1], found.states, found.errors, strict=False):
        assert rms(state - gaussian_flow(x, levels[0], level)) <= error + 1e-12
    assert max(found.errors) < 2e-3
    assert found.evaluations >= 360 or name == "ddpm"  # whose table has fewer levels there


@pytest.mark.parametrize("name", PROCESSES)
def test_it_is_known_before_how_often_the_network_is_asked(name):
    """As often for each first state as is said afterwards, and as it was asked in truth."""
    process = PROCESSES[name]
    levels = UniformLogsnr(steps=6, logsnr_min=-6, logsnr_max=6).levels(process)
    denoise, asked = gaussian(process, shape=(1, 2, 2)), []

    def answer(x, level, told, cond):
        asked.append(level)
        return denoise(x, level, told=told, cond=cond)

    found = fine_flow(Wrapped(process, answer), levels, first(process, levels, noises=2))
    assert flow_evaluations(levels, process) == found.evaluations == len(asked)


@pytest.mark.parametrize("name", PROCESSES)
def test_the_stated_error_covers_the_true_one_on_a_mixture(name):
    """Against Heun with ten times the steps, on a grid that ends where the process does."""
    process = PROCESSES[name]
    grid = UniformTime(steps=7) if name == "flow" else UniformLogsnr(steps=7)
    levels, denoise = grid.levels(process), mixture(process)
    x = first(process, levels)
    found = fine_flow(denoise, levels, x)
    finest = refined(levels, process, 700).levels
    truth = run(Heun(), denoise, finest, x) if name != "ddpm" else fine_flow(denoise, levels, x, steps=2400).states[-1]
    assert rms(found.states[-1] - truth) <= found.error + 2e-6
    assert found.error < 0.01


@pytest.mark.parametrize("steps", [7, 13])
@pytest.mark.parametrize(("name", "share"), [("edm", 1), ("flow", 0.3)])
def test_extrapolation_is_of_the_order_of_the_walk(name, share, steps):
    """The extrapolated flow is nearer to a far finer one than the walk that it is made of."""
    process = PROCESSES[name]
    levels = (UniformTime(steps=steps) if name == "flow" else Karras(steps=steps)).levels(process)
    denoise, x = mixture(process), first(process, levels)
    parts = parts_of(levels, process, 240, multiple=2)
    walked, truth = (run(Unipc(p=3), denoise, refined(levels, process, n).levels, x) for n in (parts, 5 * parts))
    assert rms(fine_flow(denoise, levels, x).states[-1] - truth) < share * rms(walked - truth)


@pytest.mark.parametrize("steps", [2, 3, 5, 8, 10, 20, 100, 300])
@pytest.mark.parametrize("name", ["edm", "flow", "vp"])
def test_a_flow_has_as_many_steps_as_it_says(name, steps):
    """Also where one of a grid's steps cannot be cut, as that from the cleanest level to the clean one."""
    process = PROCESSES[name]
    for grid in (Karras(steps=steps) if name == "edm" else UniformTime(steps=steps), UniformLogsnr(steps=steps)):
        levels = grid.levels(process)
        count = len(refined(levels, process, parts_of(levels, process, 240, multiple=2)).levels) - 1
        assert 240 <= count <= 240 + 2 * steps


def test_first_states_are_the_flow_at_the_first_level():
    """And there without error."""
    levels = Karras(steps=5).levels(Edm())
    x = first(Edm(), levels)
    found = fine_flow(mixture(Edm()), levels, x)
    assert torch.equal(found.states[0], x)
    assert found.errors[0] == 0
    assert len(found.states) == len(levels)


@pytest.mark.parametrize("name", ["edm", "ddpm"])
def test_a_flow_is_the_same_in_parts_and_where_it_is_kept(name):
    """Walked twenty states at a time, and kept at two of its levels: states and errors are those of the whole."""
    process = PROCESSES[name]
    levels = UniformLogsnr(steps=5).levels(process)
    denoise, x = mixture(process), first(process, levels)
    whole = fine_flow(denoise, levels, x)
    found = fine_flow(denoise, levels, x, batch=20, places=(2, 5))
    wanted = whole.at((2, 5))
    for one, other in zip(found.states, wanted.states, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)
    assert found.errors == pytest.approx(wanted.errors, rel=1e-6)
    assert (found.error, found.evaluations) == (pytest.approx(whole.error, rel=1e-6), whole.evaluations)


def test_the_flow_is_that_of_the_guided_network():
    """With a weight of guidance it is the flow of the denoiser that says what guidance makes it say."""
    process = Edm()
    plain, other = (mixture(process, seed=seed) for seed in (5, 6))

    def answer(x, level, told, cond):
        return plain(x, level) if bool((cond.labels >= 0).all()) else other(x, level)

    def guided(x, level, told, cond):
        p, q = plain(x, level), other(x, level)
        return Prediction(p.x0 + 0.5 * (p.x0 - q.x0), p.eps + 0.5 * (p.eps - q.eps))

    levels = Karras(steps=4).levels(process)
    x, cond = first(process, levels), Cond(labels=torch.zeros(NOISES, dtype=torch.int64))
    weight = ClassifierFreeGuidance(weight=0.5)
    found = fine_flow(Wrapped(process, answer), levels, x, cond, [weight])
    wanted = fine_flow(Wrapped(process, guided), levels, x, cond)
    assert torch.allclose(found.states[-1], wanted.states[-1], rtol=0, atol=1e-12)


INTERVALS = {  # of the sampler's steps 3 and 4, which begin at logsnr -3.07 and -0.50 and end at 2.64
    "t": {"t_min": 0.3, "t_max": 0.7},
    "logsnr": {"logsnr_min": -4.0, "logsnr_max": 1.0},
}


class Asked:
    """A network of two mixtures, with a label and without; `without` keeps the logsnr at which it is asked so."""

    def __init__(self, process):
        self.with_label, self.unlabelled = (mixture(process, seed=seed) for seed in (5, 6))
        self.process, self.without = process, []

    def answer(self, x, level, told, cond):
        if bool((cond.labels >= 0).all()):
            return self.with_label(x, level)
        self.without.append(float(level.logsnr))
        return self.unlabelled(x, level)

    def guided(self, low, high):
        """The same where the guidance, of weight 1, is between two levels."""

        def answer(x, level, told, cond):
            p, q = self.with_label(x, level), self.unlabelled(x, level)
            weight = float(low <= float(level.logsnr) < high)
            return Prediction(p.x0 + weight * (p.x0 - q.x0), p.eps + weight * (p.eps - q.eps))

        return Wrapped(self.process, answer)


def opened(interval, steps=8):
    """(The levels of a sampler, what guides its flow.)"""
    sampler = Sampler(grid=Karras(steps=steps), solver=Euler(), corrections=(interval,))
    ready = open_with(sampler, Edm(), Dummy(Edm()))
    return ready.levels, guidance_of(sampler, ready)


@pytest.mark.parametrize("name", INTERVALS)
def test_the_flow_is_guided_in_the_steps_that_the_sampler_guides(name):
    """At every level within them and at no other, also at the levels of another grid."""
    levels, guidance = opened(ClassifierFreeGuidance(weight=1.0, **INTERVALS[name]))
    x, cond = first(Edm(), levels), Cond(labels=torch.zeros(NOISES, dtype=torch.int64))
    own = Asked(Edm())
    for _ in sample(Wrapped(Edm(), own.answer), Euler(), levels, x, corrections=guidance, cond=cond):
        pass
    assert own.without == [float(level.logsnr) for level in levels[3:5]]
    low, high = (float(levels[place].logsnr) for place in (3, 5))
    for grid in (levels, Karras(steps=11).levels(Edm())):
        fine = Asked(Edm())
        fine_flow(Wrapped(Edm(), fine.answer), grid, x, cond, guidance)
        assert min(fine.without) == pytest.approx(low)
        assert max(fine.without) < high
        inside = (grid is levels) * 2 * (36 + 18)
        assert len(fine.without) == inside or grid is not levels


@pytest.mark.parametrize("name", INTERVALS)
@pytest.mark.parametrize("steps", [8, 11])
def test_the_flow_of_an_interval_is_that_of_a_network_that_changes_there(name, steps):
    """To 1e-4 that of a far finer Heun, within the error that is stated, on the sampler's grid and on another."""
    own, guidance = opened(ClassifierFreeGuidance(weight=1.0, **INTERVALS[name]))
    levels, asked = Karras(steps=steps).levels(Edm()), Asked(Edm())
    x, cond = first(Edm(), levels), Cond(labels=torch.zeros(NOISES, dtype=torch.int64))
    found = fine_flow(Wrapped(Edm(), asked.answer), levels, x, cond, guidance)
    low, high = (float(own[place].logsnr) for place in (3, 5))
    ends = [level for _, level in sorted({float(level.logsnr): level for level in (*own, *levels)}.items())]
    finest, truth = refined(ends, Edm(), 300).levels, x
    for here, there in pairwise(finest):  # a step is guided as a whole, by the level where it begins
        middle = low <= float(here.logsnr) < high
        denoise = asked.guided(-math.inf, math.inf) if middle else asked.guided(0, 0)
        truth = run(Heun(), denoise, [here, there], truth)
    assert rms(found.states[-1] - truth) <= min(found.error, 1e-4)
    for low, high in ((0, 0), (-math.inf, math.inf)):  # nowhere, and everywhere
        assert rms(fine_flow(asked.guided(low, high), levels, x, cond).states[-1] - truth) > 0.01


@pytest.mark.parametrize("batch", [1, 5, 32, 100])
def test_asking_in_parts_changes_nothing(batch):
    """At one level for all and at one for each, with what is told."""
    denoise = mixture(Edm())
    x = first(Edm(), Karras(steps=3).levels(Edm()))
    for logsnr in (tensor(1.0), torch.linspace(-2, 2, NOISES, dtype=torch.float64)):
        level = Edm().level(logsnr)
        for told in (level, Edm().level(logsnr + 0.1)):
            found, wanted = in_parts(denoise, batch)(x, level, told=told), denoise(x, level, told=told)
            assert torch.allclose(found.x0, wanted.x0, rtol=0, atol=1e-13)
            assert torch.allclose(found.eps, wanted.eps, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", PROCESSES)
@pytest.mark.parametrize("parts", [1, 2, 7])
def test_refined_grids_hold_the_old_levels(name, parts):
    """In their places; they rise; steps between noisy levels are even in logsnr, the last reaches the cleanest."""
    process = PROCESSES[name]
    grid = UniformTime(steps=5) if name == "flow" else UniformLogsnr(steps=5, logsnr_max=3)
    levels = grid.levels(process)
    fine = refined(levels, process, parts)
    assert [fine.levels[i] for i in fine.visited] == list(levels)
    logsnr = torch.stack([level.logsnr for level in fine.levels])
    assert bool((logsnr[1:] > logsnr[:-1]).all())
    assert float(logsnr[-2]) == pytest.approx(process.bounds[1])
    assert fine.even == (name != "ddpm" or parts == 1)
    inner = logsnr[fine.visited[1] : fine.visited[2] + 1].diff()
    assert len(inner) == parts
    assert inner.max() - inner.min() <= (0.05 if name == "ddpm" else 1e-12)


def test_pure_noise_is_left_evenly_in_the_angle():
    """Flow matching begins at t = 1, where logsnr is -inf."""
    levels = UniformTime(steps=4).levels(Flow())
    fine = refined(levels, Flow(), 8)
    angles = [math.atan2(float(level.sigma), float(level.alpha)) for level in fine.levels[: fine.visited[1] + 1]]
    steps = torch.tensor(angles, dtype=torch.float64).diff()
    assert len(steps) == 8
    assert steps.max() - steps.min() < 1e-12


def test_a_table_has_fewer_parts_than_asked():
    """Never more than its entries, none twice."""
    process = Ddpm()
    levels = UniformTime(steps=900).levels(process)
    assert len(refined(levels, process, 10).levels) <= 1001


def test_levels_of_the_clean_end_are_not_cut():
    """Where a grid's last noisy level is the cleanest of the process, one step is left."""
    levels = Karras(steps=5).levels(Edm())
    fine = refined(levels, Edm(), 4)
    assert isinstance(fine.levels[-1], Level)
    assert fine.visited[-1] - fine.visited[-2] == 1
