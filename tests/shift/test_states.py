"""States are read level by level, in blocks, and kept no longer: to the same numbers."""

import weakref

import pytest
import torch

from snrkit.base.frequency import views
from snrkit.diffusion.prediction import Cond, Prediction, Wrapped
from snrkit.diffusion.process import Edm
from snrkit.sampling.grid import Karras
from snrkit.sampling.sample import sample
from snrkit.sampling.sampler import Dummy, Sampler, open_with
from snrkit.sampling.solvers import Dpmpp2m, Euler
from snrkit.shift import spread
from snrkit.shift.arms import forward_arm, noise_of, noised, reverse_arm
from snrkit.shift.bootstrap import Bootstrap
from snrkit.shift.horizon import horizon_arms
from snrkit.shift.nearest import misfits
from snrkit.shift.spread import blocks, deviations, mean_of
from tests.exact import gaussian, tensor
from tests.shift.test_shift import COUNT, SHAPE, VARIANCE, clean, reference

CPU = torch.device("cpu")


@pytest.mark.parametrize("repeats", [1, 3])
def test_variances_in_blocks_are_those_of_the_definition(monkeypatch, repeats):
    """sum_n w_n |x_n - m|^2 by part, and the unbiased variance of m over whole groups, however few fit at a time."""
    shape, count = (2, 6, 4), 60
    groups = torch.arange(count) % (count // repeats)
    images = torch.randn(count, *shape, generator=torch.Generator().manual_seed(0)).double() + 3
    weights = Bootstrap(20, 0.9, 0).weights(groups, 0)
    seen, kinds = views(shape), count // repeats
    wanted = []
    for view in seen:
        centred = view.coordinates(images) - view.coordinates(images).mean(0)
        own = torch.stack([centred[groups == kind].sum(0) / count for kind in range(kinds)])
        of_mean = own.square().sum(0) * kinds / (kinds - 1)
        for part in range(len(view.names)):
            chosen = view.parts == part
            wanted.append((weights @ centred[:, chosen].square() + of_mean[chosen]).mean(1))
    for numbers in (1, 48 * 7, 10**6):
        monkeypatch.setattr(spread, "AT_ONCE", numbers)
        found = deviations(images, groups, seen)
        torch.testing.assert_close(found.variance(weights), torch.stack(wanted, 1), rtol=1e-12, atol=0)
        torch.testing.assert_close(mean_of(images), images.mean(0), rtol=1e-13, atol=1e-14)
        assert torch.equal(torch.cat(list(blocks(groups, spread.at_once(shape)))).sort().values, torch.arange(count))


def test_misfits_are_log_likelihoods(monkeypatch):
    """Differences between levels are those of ln N(alpha m, alpha^2 v + sigma^2), written out, in any blocks."""
    known, level = reference(Edm()).spectrum, Edm().level(tensor(1.0))
    states = noised(clean(10, 0), level, (9, 1))
    whole = misfits(states, level, known)
    tried = [Edm().level(tensor(1.0) + offset) for offset in (-3.0, 0.0, 3.0)]
    spread_of = [(lv.alpha**2 * VARIANCE + lv.sigma**2).sqrt() for lv in tried]
    logs = [torch.distributions.Normal(0.0, s).log_prob(states).flatten(1).sum(1) for s in spread_of]
    middle = whole.shape[1] // 2
    for index, of in ((0, 0), (-1, 2)):
        torch.testing.assert_close(whole[:, index] - whole[:, middle], 2 * (logs[1] - logs[of]), rtol=1e-9, atol=1e-8)
    monkeypatch.setattr(spread, "AT_ONCE", 3 * 16)
    torch.testing.assert_close(misfits(states, level, known), whole, rtol=1e-12, atol=0)


def test_noise_drawn_in_batches_is_one_draw():
    """Whatever the batches, in float32 too, whose numbers are made of halves of a word."""
    (_, whole), *_ = noise_of((5, 6), (3, 5), [torch.arange(31)])
    for size in (1, 4, 7):
        parts = [noise for _, noise in noise_of((5, 6), (3, 5), torch.split(torch.arange(31), size))]
        assert torch.equal(torch.cat(parts), whole)


@pytest.mark.parametrize(("solver", "kept"), [(Euler(), 1), (Dpmpp2m(), 2)])
def test_a_walk_that_waits_holds_its_state_alone(solver, kept):
    """All batches reach a level before one goes on, and beside the batch that walks no more than `kept` images live."""
    made, order, most = [], [], 0

    def answer(x, level, told, cond):
        nonlocal most
        most = max(most, sum(one() is not None for one in made))
        order.append(float(level.logsnr))
        found = Prediction(0.5 * x, 0.1 * x)
        made.extend(weakref.ref(one) for one in (x, found.x0, found.eps))
        return found

    process = Edm()
    ready = open_with(Sampler(grid=Karras(steps=12), solver=solver), process, Dummy(process))
    denoise, batches = Wrapped(process, answer), 10

    def walk(wrapped):
        return sample(wrapped, ready.solver, ready.levels, torch.ones(2, *SHAPE, dtype=torch.float64))

    reader = reference(process).reader(ready.levels[:-1], {})
    reverse_arm(denoise, [walk] * batches, range(12), 2 * batches, reader)
    assert order == sorted(order)
    assert most <= kept * batches + 8  # what is at work in one batch beside


def test_the_forward_arm_of_a_horizon_is_that_of_its_images():
    """States that were not kept are drawn again: the same numbers, at the levels where short walks end."""
    process, steps = Edm(), 2
    ready = open_with(Sampler(grid=Karras(steps=5), solver=Euler()), process, Dummy(process))
    denoise, known, levels, x0 = (
        gaussian(process, 0.0, VARIANCE, SHAPE),
        reference(process),
        ready.levels[:-1],
        clean(COUNT, 1),
    )
    of_all, of_ends = known.pixel_reader(levels), known.pixel_reader(levels[steps:])
    rows, key = torch.arange(COUNT), (9, 1)
    arm = forward_arm(denoise, levels, x0, rows, Cond(), key=key, batch=150, device=CPU, reader=of_all)
    _, ends = horizon_arms(
        denoise, ready, x0, arm, Cond(), steps, range(COUNT), of_ends, key=key, batch=150, device=CPU
    )
    assert torch.equal(ends.of_states.deviations.squares, arm.of_states.deviations.squares[steps:])
    assert torch.equal(ends.eps_square, arm.eps_square[steps:])
