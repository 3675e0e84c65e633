"""What a dry run says of memory and time is what autograd keeps, and what a clock would say."""

from contextlib import closing
from dataclasses import replace

import pytest
import torch
from torch import nn

from snrkit.base.ahead import held_ahead
from snrkit.base.distributed import World
from snrkit.commands.dry_run import activation_bytes, budget, duration
from snrkit.experiment.experiment import parse_experiment
from snrkit.experiment.opening import open_experiment, open_task
from snrkit.networks import make_network
from snrkit.training.batches import micro_batches
from tests.small import SMALL


@pytest.fixture(scope="module")
def opened():
    return open_experiment(parse_experiment(SMALL, "small"), World(0, 1, torch.device("cpu")))


class Squares(nn.Module):
    """Two layers of 1x1 convolutions, each of which keeps its input, and a square, which keeps its own."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 8, 1, bias=False), nn.Conv2d(8, 1, 1, bias=False)

    def forward(self, x, time, cond=None):
        return self.second(self.first(x).square())


def test_activations_are_those_of_a_count_by_hand(opened):
    """Input, 8 channels, their squares and the output; in mixed precision half of each, and the weights' copies.

    The input and what the loss squares are float32 in any precision.
    """
    pixels = 8 * 8
    for batch in (1, 3):
        full = activation_bytes(opened.setting, Squares(), batch, "fp32")
        half = activation_bytes(opened.setting, Squares(), batch, "bf16")
        assert full == 4 * batch * pixels * (1 + 8 + 8 + 1)
        assert half == 2 * batch * pixels * (1 + 8 + 8) + 4 * batch * pixels + 2 * (8 + 8)


def test_a_budget_grows_with_the_batch_and_copies_of_weights_do_not(opened):
    """Twice the images of a step keep twice the activations, but for the half-precision copies of the weights."""
    training, setting = opened.experiment.training, opened.setting
    found = [
        budget(training.model_copy(update={"train": training.train.model_copy(update={"batch": batch})}), setting)
        for batch in (64, 128)
    ]
    few, more = (one.activations for one in found)
    assert more["fp32"] == 2 * few["fp32"]
    network = make_network(training.network, setting.data.dataset.shape, 0)
    copies = 2 * few["bf16"] - more["bf16"]
    assert 0 < copies <= 2 * sum(p.numel() for p in network.parameters())
    assert few["bf16"] == few["fp16"] < few["fp32"]
    assert found[0].parameters == sum(p.numel() for p in network.parameters())


def test_what_fits_is_what_the_experiment_s_own_precision_keeps(opened):
    """Between both sums an experiment in bfloat16 fits and one in float32 does not."""
    found = budget(opened.experiment.training, opened.setting)
    between = found.weights + found.ahead + (found.activations["bf16"] + found.activations["fp32"]) // 2
    assert replace(found, precision="bf16", there=between).fits
    assert not replace(found, precision="fp32", there=between).fits


def test_batches_made_ahead_are_counted_as_they_are(opened):
    """What is shown and wanted of each: of all that threads begin before they are asked for, and of the one in use."""
    task = open_task(opened.experiment.training, opened.setting)
    with closing(micro_batches(task, 0)) as made:
        pair = next(made).pair
    held = (held_ahead() + 1) * (pair.x.nbytes + pair.wanted.nbytes)
    assert budget(opened.experiment.training, opened.setting, ()).ahead == held


def test_durations_are_said_in_the_unit_that_fits():
    assert [duration(s) for s in (1.25, 150, 9000, 400_000)] == ["1.2 s", "2.5 minutes", "2.5 hours", "4.6 days"]
