"""Levels, weightings and scalars that are each image's own, made up here: whatever trains knows none of them."""

from dataclasses import dataclass
from typing import Literal

import pytest
import torch

from snrkit.base.distributed import World
from snrkit.base.errors import SnrkitError
from snrkit.base.value import Value
from snrkit.diffusion.process import Edm
from snrkit.experiment.experiment import parse_experiment
from snrkit.experiment.opening import open_experiment
from snrkit.training.batches import micro_batch
from snrkit.training.holdout import held_out_loss
from snrkit.training.objective import Objective
from snrkit.training.train import make_state, micro_losses, train
from snrkit.training.weighting import Simple, beside
from tests.opened import level_sampler, open_network, open_task
from tests.small import SMALL

WORLD = World(0, 1, torch.device("cpu"))
CONFIG = {
    **SMALL,
    "network": {"kind": "mlp", "dim": 16, "depth": 1, "classes": 4},
    "train": {**SMALL["train"], "augment": None, "accumulate": 2},
}


@dataclass(frozen=True)
class Ladder:
    """Image i stands at logsnr i/100 - 2 whatever is drawn, the data set as a whole at 0; it tells (i, u)."""

    images: torch.Tensor | None = None

    def logsnr(self, u, process):
        return torch.zeros_like(u) if self.images is None else self.images.double() / 100 - 2

    def density(self, logsnr, process):
        return torch.ones_like(logsnr)

    def of(self, images):
        return Ladder(images)

    def told(self, images, u):
        return torch.stack([images, u], 1).float()


@dataclass(frozen=True)
class Rank:
    """Image i counts 1 + i times as much as `simple` has it, the data set as a whole as that."""

    images: torch.Tensor | None = None

    def weight(self, level, density, sigma_data):
        return torch.ones_like(level.logsnr) * (1 if self.images is None else 1 + self.images)

    def of(self, images):
        return Rank(images)


class Brightness(Value):
    """Levels that must have seen the images before there is a ladder of them."""

    kind: Literal["brightness"] = "brightness"

    def check(self, shape):
        if shape[0] != 1:
            raise SnrkitError("only grey images are bright")

    def open(self, images):
        SEEN.append(images.dataset.x0(range(5)).mean())
        return Ladder()

    def widest(self):
        return Ladder()


SEEN = []


def opened(**changes):
    e = parse_experiment({**CONFIG, **changes}, "small")
    network = e.network.model_copy(update={"scalars": ("a", "b")})
    own = {"levels": Brightness(), "weighting": Rank(), "network": network}
    return open_experiment(e.model_copy(update={"model": e.model.model_copy(update=own)}), WORLD)


class Noting(torch.nn.Module):
    """A network that says 0 and notes what it is told."""

    def forward(self, x, time, cond):
        self.cond = cond
        return torch.zeros_like(x)


def test_a_step_of_training_sees_levels_and_weights_of_each_image():
    """Of the indices that were drawn, in every micro-batch, though only this file knows the rule."""
    found = opened()
    task = open_task(found)
    draws = task.plan().draw(0, range(4))
    images = task.images(draws)
    step = next(train(task, make_state(task, open_network(found))))
    assert torch.equal(step.logsnr, images.double() / 100 - 2)
    assert len(step.logsnr.unique()) > 10
    pixels = task.dataset.pixels(images.tolist())
    asked = micro_batch(task, draws, pixels).ask(task)
    losses, logsnr = micro_losses(task, network := Noting(), asked, (0, 0)), asked.logsnr
    o = task.objective
    plain = Objective(o.process, o.target, o.precondition, o.levels, Simple(), o.sigma_data)
    x0, noise = task.dataset.x0(images.tolist()), draws.noise
    error = plain.output_error(network, x0, noise, logsnr, torch.zeros(64, dtype=torch.bool), None)
    torch.testing.assert_close(losses, (plain.weight(logsnr) * (1 + images) * error).float())


def test_what_is_told_of_an_image_is_asked_of_the_level_sampler():
    """With the draw that decides what is left to chance; where nothing is, for images of the data set."""
    found = opened()
    task, network = open_task(found), Noting()
    draws = task.plan().draw(3, range(2))
    images = task.images(draws)
    micro_losses(task, network, micro_batch(task, draws, task.dataset.pixels(images.tolist())).ask(task), (3, 0))
    torch.testing.assert_close(network.cond.scalars, torch.stack([images, draws.scalars], 1).float())
    rows = torch.tensor([7, 2])
    assert found.setting.condition(rows).scalars.tolist() == [[7, 1], [2, 1]]


def test_held_out_images_are_weighed_at_their_own_levels():
    """The levels of the bins are those of the held-out indices, sorted."""
    task = open_task(opened())
    found = held_out_loss(task, Noting())
    parts = torch.tensor_split(torch.tensor(sorted(task.held)).double() / 100 - 2, task.config.holdout_bins)
    torch.testing.assert_close(torch.tensor(found.logsnr).double(), torch.stack([part.mean() for part in parts]))


def test_levels_of_the_data_are_made_of_the_images_once():
    """Whoever asks gets the same sampler, which for all images is that of the data set; other shapes are refused."""
    SEEN.clear()
    found = opened()
    assert not SEEN
    assert open_task(found).objective.levels is level_sampler(found)
    assert len(SEEN) == 1
    assert torch.equal(level_sampler(found).logsnr(torch.rand(3).double(), Edm()), torch.zeros(3).double())
    with pytest.raises(SnrkitError, match="only grey images are bright"):
        opened(data={**SMALL["data"], "shape": [3, 8, 8]})


def test_what_is_one_for_all_stays_itself():
    """A level sampler and a weighting that answer no `of` are used as they are, for any images."""
    e = parse_experiment(CONFIG, "small")
    objective = Objective(e.process, e.target, e.precondition, e.levels, beside(e.weighting, e.levels), 0.5)
    own = objective.of(torch.tensor([3, 5]))
    assert own.levels is e.levels
    assert own.weighting is e.weighting
