"""What is asked of the Value that describes a network, with what holds of a network that says nothing.

The least that a network is: a Value with a `kind` and a `make(shape)`, whose module knows `forward(x, time, cond)`, x
(B, C, H, W), time (B,) -> F (B, C, H, W), and uses all of its weights in every pass. It is told the level alone and can
be trained, clipped, analyzed and sampled. What more it takes it has as an option of the field's name - `classes`,
`scalars`, `augment` - and then finds in `cond`; what more it can do are the flags of NetworkValue. Whatever is asked of
a network that does not have it is refused while the configuration is read. What its module may offer besides:
modules.py.
"""

from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor, nn

from snrkit.base.value import Value
from snrkit.diffusion.prediction import Cond
from snrkit.networks.embed import AUGMENT_PARAMETERS


@dataclass(frozen=True, slots=True)
class Conditioning:
    """What a network takes beside a state and its level: the parts of `Cond` that it is given, and no others.

    One exception: in autoguidance the weaker network is given the `Cond` of the network that it guides.
    """

    classes: int = 0  # of `labels`; 0: none
    scalars: tuple[str, ...] = ()  # their names, in order
    augment: bool = False  # parameters of the augmentation, which are zeros but in training
    unlabelled: bool = False  # a label of -1 is answered as "none"
    untold: bool = False  # a NaN in `time` is answered as "not told"
    attends: bool = False  # it has attention, and `Cond.alone` is heeded

    def unaugmented(self, count: int) -> Tensor | None:
        """The parameters (count, 9) of no augmentation; None where the network takes none."""
        return torch.zeros(count, AUGMENT_PARAMETERS) if self.augment else None

    def zeros(self, count: int) -> Cond:
        """A Cond of `count` images to try a network with: the first class, scalars 0."""
        labels = torch.zeros(count, dtype=torch.int64) if self.classes else None
        scalars = torch.zeros(count, len(self.scalars)) if self.scalars else None
        return Cond(labels, scalars, self.unaugmented(count))


class NetworkConfig(Protocol):
    """Describes a network, and makes it."""

    @property
    def kind(self) -> str:
        """Its name in experiments."""

    @property
    def conditioning(self) -> Conditioning:
        """What it takes."""

    @property
    def blockwise(self) -> bool:
        """Whether its blocks can be computed again in the backward pass, as compute.checkpointing asks."""

    @property
    def stochastic(self) -> bool:
        """Whether passes in training may draw from torch's generator, as dropout does, which is then seeded by step."""

    def make(self, shape: tuple[int, int, int]) -> nn.Module:
        """The network for images of `shape` (C, H, W), initialised by torch's generator; ValueError: none is of it."""


class NetworkValue(Value):
    """A network's Value but for `kind` and `make`: by default it takes the level alone and can do nothing more."""

    unlabelled: ClassVar[bool] = False
    untold: ClassVar[bool] = False
    blockwise: ClassVar[bool] = False

    @property
    def conditioning(self) -> Conditioning:
        """By the options that it has of these names, and by its flags."""
        taken = {name: option for name, option in self if name in ("classes", "scalars", "augment")}
        return Conditioning(**taken, unlabelled=self.unlabelled, untold=self.untold, attends=self.attends)

    @property
    def attends(self) -> bool:
        """Whether it has attention that heeds `Cond.alone`."""
        return False

    @property
    def stochastic(self) -> bool:
        """True: a seed that nothing draws from does no harm; without one a restart would draw other masks."""
        return True
