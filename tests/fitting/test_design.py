"""Designed grids: costs by least squares as written, paths by exhaustive search, and nearness on a mixture."""

import gc
import math
from dataclasses import replace
from itertools import combinations
from types import SimpleNamespace

import pytest
import torch

from snrkit.commands.design import design_states, designs
from snrkit.diffusion.prediction import Cond, Wrapped
from snrkit.diffusion.process import Edm
from snrkit.experiment.flows import FITTED_STATES, FirstStates
from snrkit.fitting import least_squares
from snrkit.fitting.design import amplifications, best_paths, record_flow, step_costs
from snrkit.fitting.steps import FittingSteps, fit_steps
from snrkit.sampling.flow import fine_flow, rms
from snrkit.sampling.grid import Karras
from snrkit.sampling.refine import refined
from snrkit.sampling.sample import start
from snrkit.sampling.sampler import Dummy, OpenedSampler, Sampler
from snrkit.sampling.solvers import Fitted
from tests.exact import gaussian, mixture, run, tensor

STEPS, SHAPE = 4, (1, 2, 2)
SHAPED = Sampler(grid=Karras(steps=STEPS), solver=Fitted())
DENOISE = mixture(Edm(), variance=0.1)


def states(seed, noises=48):
    draws = torch.Generator().manual_seed(seed)
    return torch.randn(noises, *SHAPE, generator=draws, dtype=torch.float64)


@pytest.fixture(scope="module")
def recorded():
    """The flow of a mixture at 13 candidates."""
    levels = refined(Karras(steps=STEPS).levels(Edm()), Edm(), 4).levels
    return record_flow(DENOISE, levels, start(Edm(), states(1), levels[0]))


def test_costs_are_what_least_squares_leaves(recorded):
    """Of every pair and some triples, by lstsq on the states and what the network says of them."""
    plain, history = step_costs(recorded)
    count, flow = len(recorded.levels) - 1, recorded.flow.states
    said = [DENOISE(x, level) for x, level in zip(flow[:-1], recorded.levels, strict=False)]

    def left(terms, wanted):
        f, y = torch.stack([term.flatten() for term in terms], 1), wanted.flatten()
        solution = torch.linalg.lstsq(f, y[:, None]).solution[:, 0]
        return float((y - f @ solution).square().mean())

    for i in range(count):
        for j in range(i + 1, count + 1):
            terms = [said[i].x0, said[i].eps]
            wanted = flow[j]
            assert float(plain[i, j]) == pytest.approx(left(terms, wanted), rel=1e-4, abs=1e-10)
            for h in range(0, i, 3):
                with_history = left([*terms, said[h].eps], wanted)
                assert float(history[h, i, j]) == pytest.approx(with_history, rel=1e-4, abs=1e-9)
    assert bool(plain[3, :4].isinf().all())
    assert bool(history[3, 3].isinf().all())


def first_states(denoise, batch, seed, shape=SHAPE, noises=12):
    """Of a network alone, on Karras's grid."""
    setting = SimpleNamespace(parts=SimpleNamespace(process=Edm()))
    samples = SimpleNamespace(sources=Dummy(Edm()), setting=setting, config=SimpleNamespace(batch=batch))
    draws, levels = torch.Generator().manual_seed(seed), Karras(steps=STEPS).levels(Edm())
    noise = torch.randn(noises, *shape, generator=draws, dtype=torch.float64)
    return FirstStates(samples, denoise, start(Edm(), noise, levels[0]), Cond(), (), levels)


def test_parts_change_nothing(recorded, monkeypatch):
    """Costs, gains and paths of states that are walked 20 at a time, and whose products are taken one by one."""
    wanted = amplifications(DENOISE, recorded, range(0, 13, 3))
    monkeypatch.setattr(least_squares, "HELD_AT_ONCE", 1)
    found = record_flow(DENOISE, recorded.levels, recorded.flow.states[0], batch=20)
    for one, other in zip(found.flow.states, recorded.flow.states, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)
    assert found.flow.errors == pytest.approx(recorded.flow.errors, rel=1e-6, abs=1e-12)
    (plain, history), (plain_wanted, history_wanted) = step_costs(found), step_costs(recorded)
    torch.testing.assert_close(plain, plain_wanted, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(history, history_wanted, rtol=1e-10, atol=1e-10)
    gains = amplifications(DENOISE, found, range(0, 13, 3), batch=20)
    torch.testing.assert_close(gains, wanted, rtol=1e-6, atol=0)  # of differences of walks
    assert (
        best_paths(plain, history, gains, 4)[0].places == best_paths(plain_wanted, history_wanted, wanted, 4)[0].places
    )


def test_tables_are_the_same_in_parts(monkeypatch):
    """Designed grids, the coefficients of their steps and their distances, of 12 first states as 5, 5 and 2."""
    wanted = designs(first_states(DENOISE, 1000, 1), first_states(DENOISE, 1000, 2), SHAPED)
    monkeypatch.setattr(least_squares, "HELD_AT_ONCE", 8 * 4 * 6 * 3)
    found = designs(first_states(DENOISE, 5, 1), first_states(DENOISE, 5, 2).at_the_end(), SHAPED)
    for one, other in zip(found, wanted, strict=True):
        assert one.sampler == other.sampler
        torch.testing.assert_close(tensor(one.table.rows), tensor(other.table.rows), rtol=1e-10, atol=1e-10)
        assert one.distance == pytest.approx(other.distance, abs=1e-10)


def held(least):
    """Bytes of all tensors that are at least as large."""
    storages = [part.untyped_storage() for part in gc.get_objects() if type(part) is torch.Tensor]
    return sum({part.data_ptr(): part.nbytes() for part in storages if part.nbytes() >= least}.values())


def test_states_are_held_once(monkeypatch):
    """Whenever the network is asked, no more stands than is said beforehand, hardly more than the flow."""
    monkeypatch.setattr(least_squares, "HELD_AT_ONCE", 1)
    shape, noises, most, calls = (1, 16, 16), 16, 0, 0
    plain, state = mixture(Edm(), shape=shape), 8 * math.prod(shape)

    def answer(x, level, told, cond):
        nonlocal most, calls
        calls += 1
        if calls % 307 == 0:
            most = max(most, held(state) - before)
        return plain(x, level)

    gc.collect()
    before = held(state)
    both = [first_states(Wrapped(Edm(), answer), 8, seed, shape, noises) for seed in (1, 2)]
    with torch.no_grad():
        designs(both[0], both[1].at_the_end(), SHAPED)
    kept = design_states(SHAPED, Edm())
    assert 0.8 * kept < most / (state * noises) < kept + FITTED_STATES


@pytest.mark.parametrize("steps", [1, 2, 3, 5])
def test_paths_are_those_of_an_exhaustive_search(steps):
    """On costs that are drawn at random, over all paths of nine levels."""
    draws, count = torch.Generator().manual_seed(steps), 8
    plain = torch.rand(count, count + 1, generator=draws, dtype=torch.float64)
    history = torch.rand(count, count, count + 1, generator=draws, dtype=torch.float64)
    gains = torch.rand(count + 1, generator=draws, dtype=torch.float64)
    i, j = torch.arange(count), torch.arange(count + 1)
    plain = torch.where(j[None] > i[:, None], plain, torch.inf)
    rises = (i[None] > i[:, None])[..., None] & (j > i[:, None])[None]
    history = torch.where(rises, history, torch.inf)

    def cost(path):
        total = float(plain[path[0], path[1]] * gains[path[1]])
        return total + sum(
            float(history[h, i, j] * gains[j]) for h, i, j in zip(path, path[1:], path[2:], strict=False)
        )

    every = sorted((cost((0, *inner, count)), (0, *inner, count)) for inner in combinations(range(1, count), steps - 1))
    found = best_paths(plain, history, gains, steps)
    assert found[0].places == every[0][1]
    assert found[0].cost == pytest.approx(every[0][0])
    for path in found:
        assert path.cost == pytest.approx(cost(path.places))
    assert [path.cost for path in found] == sorted(path.cost for path in found)


def test_gains_are_those_of_the_gaussian_flow():
    """An error at a level is in the image sqrt(v/(alpha^2 v + sigma^2)) times as large; in between, interpolated."""
    levels = refined(Karras(steps=STEPS).levels(Edm()), Edm(), 12).levels
    denoise = gaussian(Edm(), 0.3, 0.25, SHAPE)
    recorded = record_flow(denoise, levels, start(Edm(), states(1), levels[0]))
    places = range(0, len(levels), 2)
    found = amplifications(denoise, recorded, places)
    for place in list(places)[1:-1]:
        level = levels[place]
        wanted = 0.25 / float(level.alpha**2 * 0.25 + level.sigma**2)
        assert float(found[place]) == pytest.approx(wanted, rel=0.05)
    assert found[-1] == 1


def test_a_designed_grid_is_nearer_than_karras():
    """The best of the paths on the first states that steps were fitted on; on others, with fitted steps on both."""
    shape, steps, denoise = (1, 4, 4), 7, mixture(Edm(), shape=(1, 4, 4), variance=0.06)
    fine = refined(Karras(steps=steps).levels(Edm()), Edm(), 10)
    draws = torch.Generator().manual_seed(1)
    noise = torch.randn(2, 96, *shape, generator=draws, dtype=torch.float64)
    x, fresh = (start(Edm(), part, fine.levels[0]) for part in noise)
    recorded = record_flow(denoise, fine.levels, x)
    gains = amplifications(denoise, recorded, fine.visited)
    paths = [path.places for path in best_paths(*step_costs(recorded), gains, steps)]

    def fitted(places):
        levels = tuple(fine.levels[place] for place in places)
        flow = replace(recorded.flow, states=tuple(recorded.flow.states[place] for place in places))
        value, fitting = Fitted(), FittingSteps(flow)
        table = fit_steps(denoise, OpenedSampler(levels, value.with_fit(fitting), ()), fitting, x, value.terms)
        solver = value.with_fit(table.fit)
        return rms(run(solver, denoise, levels, x) - flow.states[-1]), run(solver, denoise, levels, fresh)

    truth = fine_flow(denoise, fine.levels, fresh, steps=120).states[-1]
    _, designed = min((fitted(path) for path in paths), key=lambda found: found[0])
    assert rms(designed - truth) < 0.7 * rms(fitted(fine.visited)[1] - truth)
