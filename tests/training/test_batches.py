"""What a step is given does not depend on when or where it was made."""

import threading
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np
import pytest
import torch

from snrkit.base.distributed import World
from snrkit.base.errors import DataError
from snrkit.base.streams import TRAIN
from snrkit.base.transfer import Reading
from snrkit.data.augment import DRAWS
from snrkit.experiment.experiment import parse_experiment
from snrkit.experiment.opening import open_experiment
from snrkit.training import batches
from snrkit.training.batches import micro_batches
from snrkit.training.objective import Pair
from snrkit.training.randomness import Plan
from snrkit.training.step import Seen, TrainStep
from snrkit.training.train import make_state, train
from tests.opened import open_network, open_task
from tests.pretended import CUDA, pretended
from tests.small import SMALL

WORLD = World(0, 1, torch.device("cpu"))


def opened(**train):
    return open_experiment(parse_experiment({**SMALL, "train": {**SMALL["train"], **train}}, "small"), WORLD)


@pytest.mark.parametrize("extras", [None, 0, 2])
def test_draws_are_those_of_the_streams(extras):
    """Slice by slice, each kind after the other, from the stream of (seed, step, slice) alone."""
    found = Plan(3, 48, 16, 1000, (3, 4, 5), extras).draw(7, [1, 2])
    for place, index in enumerate((1, 2)):
        rows, rng = slice(16 * place, 16 * place + 16), TRAIN.open(3, 7, index)
        assert found.positions[rows].tolist() == rng.integers(1000, size=16).tolist()
        uniform = torch.from_numpy(rng.random((16, 4 + DRAWS)))
        assert torch.equal(found.level[rows], (torch.arange(16) + 16 * index + uniform[:, 0]) / 48)
        for got, column in ((found.label_drop, 1), (found.noise_drop, 2), (found.flip, 3)):
            assert torch.equal(got[rows], uniform[:, column])
        assert torch.equal(found.augment[rows], uniform[:, 4:])
        noise = [torch.from_numpy(rng.standard_normal((16, 3, 4, 5), np.float32)) for _ in range(1 + (extras or 0))]
        assert torch.equal(found.noise[rows], noise[0])
        if extras is not None:
            assert found.extra.shape == (32, extras, 3, 4, 5)
            for kind in range(extras):
                assert torch.equal(found.extra[rows, kind], noise[1 + kind])
        assert found.chance[rows].tolist() == rng.random(16).tolist()
        assert found.scalars[rows].tolist() == rng.random(16).tolist()


def test_positions_alone_are_those_of_the_draws():
    """Which readers of files ask for first."""
    plan = Plan(3, 64, 16, 1000, (1, 2, 2))
    assert torch.equal(plan.positions(5, [0, 3]), plan.draw(5, [0, 3]).positions)


@pytest.mark.parametrize("changes", [{}, {"accumulate": 2, "perturb": {"kind": "ciop"}}, {"importance": {}}])
def test_any_number_of_threads_trains_the_same(monkeypatch, changes):
    """To the bit: in order in this thread, and in one, two and five."""
    found = []
    for workers in (0, 1, 2, 5):
        monkeypatch.setattr(batches, "threads", lambda _, workers=workers: workers)
        if workers == 0:
            monkeypatch.setattr(batches, "ahead", lambda make, keys, _: map(make, keys))
        e = opened(**changes)
        state = make_state(open_task(e), open_network(e))
        losses = [step.loss for step in islice(train(open_task(e), state), 6)]
        found.append((losses, torch.cat([p.detach().flatten() for p in state.network.parameters()])))
        monkeypatch.undo()
    for losses, weights in found[1:]:
        assert losses == found[0][0]
        assert torch.equal(weights, found[0][1])


def test_workers_that_read_files_give_the_same_batches(tmp_path):
    """A set that is read by processes: positions are drawn for them apart."""
    e = opened()
    task = open_task(e)
    streaming = replace(task, dataset=replace(task.dataset, streams=True), workers=2)
    pairs = zip(micro_batches(task, 4), micro_batches(streaming, 4), strict=False)
    for one, other in islice(pairs, 3):
        assert torch.equal(one.images, other.images)
        assert torch.equal(one.pair.x, other.pair.x)
        assert torch.equal(one.pair.wanted, other.pair.wanted)


def test_an_image_that_cannot_be_read_ends_the_step_that_needs_it():
    """And none before, whoever reads: threads ahead of the step, or processes ahead of these."""
    plain = open_task(opened())
    wanted = [asked.images for asked in islice(micro_batches(plain, 0), 8)]
    first = {int(i): number for number in reversed(range(8)) for i in wanted[number]}
    missing = next(image for image, number in first.items() if number == 5)
    reads = Broken(plain.dataset.pixels, missing)
    for workers in (0, 2):
        task = replace(plain, dataset=replace(plain.dataset, streams=True, pixels=reads), workers=workers)
        made = micro_batches(task, 0)
        assert len(list(islice(made, 5))) == 5
        with pytest.raises(DataError, match="cannot be read"):
            next(made)
        made.close()


@dataclass(frozen=True)
class Broken:
    """Reads all images but one."""

    pixels: object
    missing: int

    def __call__(self, indices):
        if self.missing in indices:
            raise DataError("an image cannot be read; copy it again.")
        return self.pixels(indices)


def test_nothing_is_drawn_read_or_paired_by_the_thread_that_steps(monkeypatch):
    """All of it happens ahead, but for levels that depend on what was learned so far."""
    callers = {}

    def noting(owner, name):
        plain = getattr(owner, name)

        def call(*given, **named):
            callers.setdefault(name, set()).add(threading.current_thread() is threading.main_thread())
            return plain(*given, **named)

        monkeypatch.setattr(owner, name, call)

    noting(Plan, "draw")
    noting(batches, "micro_batch")
    noting(batches.MicroBatch, "ask")
    for changes, asks in (({}, {False}), ({"importance": {}}, {True})):
        callers.clear()
        e = opened(**changes)
        task = open_task(e)
        list(islice(train(task, make_state(task, open_network(e))), 3))
        assert callers == {"draw": {False}, "micro_batch": {False}, "ask": asks}


def test_the_error_of_a_pair_is_the_mean_square():
    """And its gradient that of autograd, to the bit; in float64 that of finite differences."""
    output, wanted, scale = torch.randn(6, 3, 8, 8, requires_grad=True), torch.randn(6, 3, 8, 8), torch.rand(6)
    plain = (output - wanted).square().flatten(1).mean(1)
    (expected,) = torch.autograd.grad((scale * plain).sum(), output)
    found = Pair(wanted, torch.zeros(6), wanted).error(output)
    assert torch.equal(found, plain)
    assert torch.equal(torch.autograd.grad((scale * found).sum(), output)[0], expected)
    half = Pair(wanted, torch.zeros(6), wanted).error(output.bfloat16())
    assert half.dtype == torch.float32


ADAPTING = ({"balance": {}}, {"importance": {}})


@pytest.mark.parametrize("changes", [
    {}, {"accumulate": 2}, {"clip": {"kind": "agc"}}, {"clip": None, "optimizer": "adam"}, {"optimizer": "sgd"},
    {"uncertainty": {}}, {"perturb": {"kind": "ddpm_ip"}}, {"perturb": {"kind": "ciop"}}, *ADAPTING,
], ids=str)  # fmt: skip
def test_a_step_waits_for_the_device_once(monkeypatch, changes):
    """For the numbers of the step before; once more where the next levels follow from the losses. No thread waits."""
    e = opened(**changes)
    plain = [step.loss for step in islice(train(open_task(e), make_state(open_task(e), open_network(e))), 4)]
    with pretended(monkeypatch) as waits:
        task = replace(open_task(e), world=World(0, 1, CUDA))
        steps = train(task, make_state(task, open_network(e)))
        first = next(steps)
        waits.clear()
        others = list(islice(steps, 3))
        steps.close()
        found = list(waits)
        assert [first.loss, *(step.loss for step in others)] == plain
    each = [("to the host", True), ("event", True)] if changes in ADAPTING else [("event", True)]
    assert found == each * 3


def test_a_step_tells_what_this_process_saw_and_once_settled_what_all_saw():
    """Levels and culprits."""
    reading = Reading(torch.tensor([1.0, 0.0, 0.0]))  # skipped
    seen = [Seen(torch.tensor([5, 6]), torch.tensor([0.5, 2.0]), torch.tensor([1.0, torch.nan]))]
    step = TrainStep(1, 64, 1e-3, seen, (), reading)
    assert step.skipped
    assert (step.logsnr.tolist(), step.culprits) == ([0.5, 2.0], ((6, 2.0),))
    step.tell(torch.ones(4), ((3, 1.0), (6, 2.0)))
    assert (step.logsnr.tolist(), step.culprits) == ([1.0] * 4, ((3, 1.0), (6, 2.0)))
