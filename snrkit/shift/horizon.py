"""Short horizons: what a few steps do to states that are right.

Held-out images noised to level i are walked k steps by the sampler and read at level i + k, against held-out images
noised to that level: so the error of a step is seen without the errors of all steps before it. A multistep solver
starts without a history here, as it does at the first step of a grid.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from snrkit.base.streams import FORWARD_HELD
from snrkit.base.transfer import send
from snrkit.base.value import MOST_HELD, Steps
from snrkit.diffusion.prediction import Cond, Denoiser
from snrkit.sampling.sample import sample
from snrkit.sampling.sampler import OpenedSampler
from snrkit.sampling.step import Noise
from snrkit.shift.arms import Arm, LevelReadings, LevelStates, make_arm, noised
from snrkit.shift.bootstrap import OF_FORWARD, Bootstrap, Curve, Number
from snrkit.shift.measure import Reference, pixel_ratio
from snrkit.shift.probe import ProbeValue, Specimen
from snrkit.shift.states import StateReader, StateReadings
from snrkit.training.randomness import ImageStreams


@dataclass(frozen=True, slots=True)
class Horizon:
    """Readings after `steps` right-started steps, at the levels where they end."""

    steps: int
    logsnr: list[float]
    norm_gap: Curve  # nats, over forward samples
    variance_ratio: Curve  # over forward samples
    mean_norm_gap: Number
    mean_log_variance_ratio: Number


@torch.no_grad()
def horizon_arms(
    denoise: Denoiser,
    ready: OpenedSampler,
    x0: Tensor,
    forward: Arm,
    cond: Cond,
    steps: int,
    seeds: Sequence[int],
    reader: StateReader,
    *,
    key: Sequence[int],
    batch: int,
    device: torch.device,
) -> tuple[Arm, Arm]:
    """(walked, forward): forward states of clean images x0 (n, *) walked `steps` steps, and those of where they end.

    Both at the reader's levels `steps`, ..., L - 1. `forward`: the arm of which these images are the first; its noise
    was drawn from `key`. `seeds` give fresh noise for the steps.
    """
    levels, groups = ready.levels[:-1], forward.groups[: len(x0)]
    walked, ends = [], []
    for first, level in enumerate(levels):
        states = noised(x0, level.at(slice(len(x0))), (*key, first)).float()
        if first >= steps:
            ends.append(_end(forward, first, reader.read(first - steps, states, groups)))
        if first + steps >= len(levels):
            continue
        kept, end = LevelStates(groups, reader), levels[first + steps]
        for part in torch.split(torch.arange(len(x0)), batch):
            known, x = cond.at(part).to(device), send(states[part].double(), device)
            noise = ImageStreams([seeds[i] for i in part.tolist()], device)
            x = _walked(denoise, ready, part, x, known, noise, range(first, first + steps))
            kept.add(x, denoise(x, end.at(part), cond=known))
        walked.append(kept.read(first))
    return make_arm(walked, groups), make_arm(ends, groups)


def _walked(
    denoise: Denoiser, ready: OpenedSampler, part: Tensor, x: Tensor, cond: Cond, noise: Noise, steps: range
) -> Tensor:
    """Where these steps end for the images `part` (n,) that stand at x (n, *)."""
    grid = [level.at(part) for level in ready.levels]
    for step in sample(
        denoise, ready.solver, grid, x, corrections=ready.corrections, noise=noise, cond=cond, steps=steps
    ):
        x = step.x_next
    return x


def _end(forward: Arm, index: int, of_states: StateReadings) -> LevelReadings:
    """A level of the forward arm, of its first images."""
    n = len(of_states.misfits)
    eps, x0, spread = (part[index, :n] for part in (forward.eps_square, forward.x0_square, forward.x0_variance))
    return LevelReadings(eps, x0, spread, of_states, forward.shape)


def read_horizon(
    arm: Arm, forward: Arm, ready: OpenedSampler, steps: int, reference: Reference, bootstrap: Bootstrap
) -> Horizon:
    """The readings of both arms, at the levels from `steps` on; images are resampled together."""
    levels, weights = ready.typical[steps:-1], bootstrap.weights(forward.groups, OF_FORWARD)
    gap = ((arm.eps_square @ weights.T) / (forward.eps_square @ weights.T)).log()
    mine, known = (pixel_ratio(states, levels, reference, weights) for states in (arm, forward))
    whole = mine / known
    return Horizon(
        steps,
        [float(level.logsnr) for level in levels],
        bootstrap.curve(gap),
        bootstrap.curve(whole),
        bootstrap.number(gap.mean(0)),
        bootstrap.number(whole.log().mean(0)),
    )


class HorizonProbe(ProbeValue):
    """What a few steps do to states that are right."""

    kind: Literal["horizon"] = "horizon"
    steps: Steps = Field(default=1, description="steps walked from states that are right")
    images: int = Field(default=256, ge=8, le=MOST_HELD, description="images behind the short horizon")

    record: ClassVar[type[Horizon]] = Horizon
    columns: ClassVar[tuple[str, ...]] = ("short horizon: norm gap", "short horizon: ln variance ratio")
    guide: ClassVar[str] = "Short horizon: the same readings after one step from states that are right."

    def read(self, specimen: Specimen) -> Horizon | None:
        """On the first held-out images; None for a grid of too few steps."""
        s = specimen
        if len(s.levels) <= self.steps:
            return None
        rows, reader = s.forward.groups[: self.images], s.reference.pixel_reader(s.levels[self.steps :])
        own, cond = s.equipment.placed(s.ready, rows)
        walked, forward = horizon_arms(
            s.denoise, own, s.equipment.shown(rows), s.forward, cond, self.steps, s.seeds, reader,
            key=FORWARD_HELD.key(s.seed), batch=s.batch, device=s.device,
        )  # fmt: skip
        return read_horizon(walked, forward, s.ready, self.steps, s.reference, s.bootstrap)

    def cells(self, record: Horizon) -> tuple[str, ...]:
        return record.mean_norm_gap.signed(), record.mean_log_variance_ratio.signed()
