"""What is read of the states of a level, image by image, so that no states need be kept once it has been read.

Under any weights of the images, such as a resample's, a variance and a likelihood follow from numbers of each image
(spread.py, nearest.py); so does the mean of whatever a probe reads of every state.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from snrkit.base.frequency import View
from snrkit.diffusion.level import Level
from snrkit.shift.nearest import GaussianFit, misfits
from snrkit.shift.spread import Deviations, deviations

Watch = Callable[[Tensor, Level], Tensor]
"""(n,) float64 on the CPU, of states (n, C, H, W) float32 on any device whose nominal level () is given."""


@dataclass(frozen=True, slots=True)
class StateReadings:
    """Of n states at each of L levels."""

    deviations: Deviations  # squares (L, n, G): those of all views in turn
    misfits: Tensor  # (L, n, K) -2 ln p at each of the levels tried round the nominal one; K is 0 where none were
    watched: Mapping[str, Tensor]  # (L, n) of every probe that reads states


@dataclass(frozen=True, slots=True)
class StateReader:
    """What is to be read at which nominal levels (); by default nothing."""

    levels: Sequence[Level] = ()
    views: Sequence[View] = ()
    spectrum: GaussianFit | None = None  # under which states are likely at one level or another
    watches: Mapping[str, Watch] = field(default_factory=dict)

    @property
    def reads(self) -> bool:
        """Whether states are looked at."""
        return bool(self.views or self.spectrum or self.watches)

    def read(self, index: int, states: Tensor, groups: Tensor) -> StateReadings:
        """Of states (n, C, H, W) at the level `index`, without a dimension for levels."""
        level = self.levels[index]
        tried = torch.zeros(len(states), 0, dtype=torch.float64)
        return StateReadings(
            deviations(states, groups, self.views),
            tried if self.spectrum is None else misfits(states, level, self.spectrum),
            {name: watch(states, level) for name, watch in self.watches.items()},
        )

    def nothing(self, count: int) -> StateReadings:
        """What a reader without views, spectrum and watches reads of so many states."""
        none = torch.zeros(count, 0, dtype=torch.float64)
        return StateReadings(Deviations(none, torch.zeros(0, dtype=torch.float64)), none, {})


def stack(found: Sequence[StateReadings]) -> StateReadings:
    """The readings of single levels as those of L."""
    return StateReadings(
        Deviations(
            torch.stack([one.deviations.squares for one in found]),
            torch.stack([one.deviations.of_mean for one in found]),
        ),
        torch.stack([one.misfits for one in found]),
        {name: torch.stack([one.watched[name] for one in found]) for name in found[0].watched},
    )
