"""What a training is surrounded by, and what is the same at every step of it."""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from snrkit.base.distributed import World
from snrkit.base.transfer import send
from snrkit.data.dataset import Dataset
from snrkit.data.representation import PIXELS, Representation
from snrkit.training.config import TrainConfig
from snrkit.training.objective import Objective
from snrkit.training.randomness import Draws, Plan


@runtime_checkable
class Scalars(Protocol):
    """Says what a network is told of each image beside level and label, as `Cond.scalars`."""

    def told(self, images: Tensor, u: Tensor) -> Tensor:
        """(B, S) float32 of these images (B,) of the data set; u (B,) in [0, 1] decides what is left to chance.

        Asked by several threads at once.
        """


@dataclass(frozen=True, slots=True)
class Task:
    """The fixed surroundings of training: data, objective, precision and processes."""

    config: TrainConfig
    objective: Objective
    dataset: Dataset
    train: tuple[int, ...]  # indices that may be trained on
    held: tuple[int, ...]
    seed: int
    world: World
    flip: bool = False
    workers: int = 0
    autocast: torch.dtype | None = None
    channels_last: bool = False
    compile: bool = False
    dropout: bool = False
    scalars: Scalars | None = None  # None: the network is told none
    representation: Representation = PIXELS  # in whose images data.flip and train.augment act

    @property
    def memory(self) -> torch.memory_format:
        """How images lie in memory."""
        return torch.channels_last if self.channels_last else torch.preserve_format

    def told(self, images: Tensor, u: Tensor) -> Tensor | None:
        """As Scalars.told, on the device; None where the network is told no scalars."""
        return None if self.scalars is None else send(self.scalars.told(images, u), self.world.device)

    def images(self, draws: Draws) -> Tensor:
        """The images (n,) of the data set that were drawn."""
        return torch.tensor([self.train[p] for p in draws.positions.tolist()])

    def pixels(self, draws: Draws) -> Tensor:
        """Of these images, (n, C, H, W); those with a posterior as they are drawn from it."""
        return self.dataset.drawn(self.images(draws).tolist(), draws.latents)

    def plan(self) -> Plan:
        """The shape of the random draws."""
        config = self.config
        return Plan(
            self.seed,
            config.batch,
            config.slice,
            len(self.train),
            self.dataset.shape,
            None if config.perturb is None else config.perturb.extras,
            self.dataset.posterior is not None,
        )
