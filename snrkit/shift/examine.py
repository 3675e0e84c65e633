"""The headline reading: a sampler's own states against real images, at every level that it visits.

`snrkit measure-shift` and `snrkit.measure` are this one function; they differ in where walks and images come from.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from snrkit.base.streams import FORWARD_HELD, FORWARD_TRAIN
from snrkit.diffusion.level import Level
from snrkit.diffusion.prediction import Cond, Denoiser
from snrkit.sampling.step import Step
from snrkit.shift.arms import NOTHING, Arm, forward_arm, reverse_arm
from snrkit.shift.bootstrap import Bootstrap
from snrkit.shift.measure import Reference, Shift, read, summarise
from snrkit.shift.states import StateReader

Walk = Callable[[Denoiser], Iterable[Step]]
"""The steps of a batch of trajectories, walked with the denoiser that it is given."""


@dataclass(frozen=True, slots=True)
class Side:
    """Real images of one side of the split, and how the network is shown them."""

    x0: Callable[[], Tensor]  # reads them: (n, C, H, W)
    rows: Tensor  # (n,) which images they are; repeats are resampled together
    levels: Sequence[Level]  # to which they are noised, () or (n,)
    cond: Cond


def real_arms(
    denoise: Denoiser, held: Side, trained: Side, reader: StateReader, seed: int, batch: int, device: torch.device
) -> tuple[Arm, Arm]:
    """The forward arms of held-out and of training images, each with noise of its own.

    The reader reads the states of the former; of the latter no more than what the network says is asked for.
    """
    sides = ((held, FORWARD_HELD, reader), (trained, FORWARD_TRAIN, NOTHING))
    first, second = (
        forward_arm(
            denoise, s.levels, s.x0(), s.rows, s.cond, key=noise.key(seed), batch=batch, device=device, reader=reads
        )
        for s, noise, reads in sides
    )
    return first, second


@dataclass(frozen=True, slots=True)
class Examined:
    """The three arms of a sampler and what they say."""

    reverse: Arm
    forward: Arm
    train: Arm
    shift: Shift
    sizes: Mapping[str, Tensor]  # as Readings.sizes


@torch.no_grad()
def examine(
    denoise: Denoiser,
    walks: Iterable[Walk],
    images: int,
    real: tuple[Arm, Arm],
    reader: StateReader,
    reference: Reference,
    bootstrap: Bootstrap,
) -> Examined:
    """The reading of the walks of so many images, at the reader's levels, against held-out and training images."""
    levels = reader.levels
    reverse = reverse_arm(denoise, walks, range(len(levels)), images, reader)
    found = read(reverse, *real, levels, reference, bootstrap)
    shift = summarise(found, (reverse, real[0]), levels, bootstrap)
    return Examined(reverse, *real, shift, found.sizes())
