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

from snrkit.base.value import MOST_HELD, Steps
from snrkit.diffusion.prediction import Cond, Denoiser
from snrkit.sampling.sample import sample
from snrkit.sampling.sampler import OpenedSampler
from snrkit.shift.arms import Arm, Rows, make_arm
from snrkit.shift.bootstrap import OF_FORWARD, Bootstrap, Curve, Number
from snrkit.shift.measure import Reference, pixel_ratio
from snrkit.shift.probe import ProbeValue, Specimen
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
def horizon_arm(
    denoise: Denoiser,
    ready: OpenedSampler,
    forward: Arm,
    cond: Cond,
    steps: int,
    seeds: Sequence[int],
    *,
    batch: int,
    device: torch.device,
) -> Arm:
    """The arm of levels `steps`, ..., L - 1: forward states walked `steps` steps; `seeds` give fresh noise."""
    levels = ready.levels[:-1]
    rows = [Rows() for _ in levels[steps:]]
    for first in range(len(levels) - steps):
        for part in torch.split(torch.arange(len(forward.groups)), batch):
            known, grid = cond.at(part).to(device), [level.at(part) for level in ready.levels]
            x = forward.states[first, part].double().to(device)
            noise = ImageStreams([seeds[i] for i in part.tolist()], device)
            for step in sample(
                denoise,
                ready.solver,
                grid,
                x,
                corrections=ready.corrections,
                noise=noise,
                cond=known,
                steps=range(first, first + steps),
            ):
                x = step.x_next
            rows[first].add(x, denoise(x, levels[first + steps].at(part), cond=known))
    return make_arm(rows, forward.groups)


def read_horizon(
    arm: Arm, forward: Arm, ready: OpenedSampler, steps: int, reference: Reference, bootstrap: Bootstrap
) -> Horizon:
    """The readings; images are resampled together in both arms."""
    levels, weights = ready.typical[steps:-1], bootstrap.weights(forward.groups, OF_FORWARD)
    gap = ((arm.eps_square @ weights.T) / (forward.eps_square[steps:] @ weights.T)).log()
    mine, known = (pixel_ratio(states, levels, reference, weights) for states in (arm, forward.from_level(steps)))
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
        forward = s.forward.first(min(self.images, len(s.seeds)))
        own, cond = s.equipment.placed(s.ready, forward.groups)
        arm = horizon_arm(s.denoise, own, forward, cond, self.steps, s.seeds, batch=s.batch, device=s.device)
        return read_horizon(arm, forward, s.ready, self.steps, s.reference, s.bootstrap)

    def cells(self, record: Horizon) -> tuple[str, ...]:
        return record.mean_norm_gap.signed(), record.mean_log_variance_ratio.signed()
