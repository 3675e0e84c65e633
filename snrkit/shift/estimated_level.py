"""The shift that a fitted estimator of levels (estimator.py) sees.

    shift(x) = E_q[logsnr] - nominal logsnr

An estimator shrinks towards the middle of what it is unsure of: so the reading is the reverse arm's mean minus that of
held-out forward samples of the same level, its null, divided by the estimator's response, by how much its mean moves
when forward samples move by one nat; where it responds by less than half, nothing is read.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from snrkit.base.streams import RESPONSE
from snrkit.diffusion.level import Level
from snrkit.diffusion.process import Process
from snrkit.shift.arms import Arm, noised
from snrkit.shift.bootstrap import Bootstrap, Curve, Number
from snrkit.shift.estimator import Estimator
from snrkit.shift.probe import Circumstances, Equipment, ProbeValue, Specimen
from snrkit.shift.states import Watch

STEP = 0.25  # nats, of the response
WEAKEST = 0.5


@dataclass(frozen=True, slots=True)
class EstimatedLevel:
    """E_q[logsnr] - nominal, nats: of the sampler's states, of forward ones (its null), and the shift they say."""

    reverse: Curve
    forward: Curve
    response: list[float]
    shift: Curve  # (reverse - forward) / response; NaN where the response is too weak
    mean_shift: Number
    levels_read: int


def respond(estimator: Estimator, process: Process, levels: Sequence[Level], x0: Tensor, key: Sequence[int]) -> Tensor:
    """(L,) d E_q[logsnr] / d logsnr of images x0 (n, *) noised to STEP nats below and above every level."""
    found = []
    for level in levels:
        beside = [noised(x0, process.level(level.logsnr + way * STEP), key) for way in (-1, 1)]
        low, high = (estimator.mean(states.float()).mean() for states in beside)
        found.append((high - low) / (2 * STEP))
    return torch.stack(found)


def read_estimator(
    reverse: Arm, forward: Arm, levels: Sequence[Level], response: Tensor, bootstrap: Bootstrap
) -> EstimatedLevel:
    """The readings at every level, of arms that the probe has watched; NaN at pure noise."""
    nominal = torch.stack([level.logsnr for level in levels])[:, None]
    found = []
    for number, arm in enumerate((reverse, forward)):
        means = arm.of_states.watched["estimator"] - nominal
        means[nominal[:, 0].isinf()] = torch.nan
        found.append(means @ bootstrap.weights(arm.groups, number).T)
    shift = (found[0] - found[1]) / response[:, None]
    shift = shift.masked_fill(~(response[:, None] >= WEAKEST), torch.nan)
    return EstimatedLevel(
        bootstrap.curve(found[0]),
        bootstrap.curve(found[1]),
        response.tolist(),
        bootstrap.curve(shift),
        bootstrap.number(shift.nanmean(0)),
        int((~shift[:, 0].isnan()).sum()),
    )


class EstimatorProbe(ProbeValue):
    """The shift that the fitted estimator of levels sees."""

    kind: Literal["estimator"] = "estimator"

    record: ClassVar[type[EstimatedLevel]] = EstimatedLevel
    columns: ClassVar[tuple[str, ...]] = ("estimator's shift less its null",)
    guide: ClassVar[str] = (
        "Estimator: a small network's reading of the level, less that on held-out images, divided by its response; "
        "levels to which it does not respond are left out."
    )

    def missing(self, given: Circumstances) -> str | None:
        if given.estimator:
            return None
        return (
            "asks a fitted estimator of levels, which this run lacks; run snrkit fit-estimator with the same file first"
        )

    def watch(self, equipment: Equipment) -> Watch:
        """The estimator's mean."""
        estimator = equipment.estimator()
        return lambda states, _: estimator.mean(states)

    def read(self, specimen: Specimen) -> EstimatedLevel:
        """The response is taken on the held-out images."""
        s, estimator = specimen, specimen.equipment.estimator()
        x0 = s.equipment.shown(s.forward.groups)
        response = respond(estimator, s.denoise.process, s.levels, x0, RESPONSE.key(s.seed))
        return read_estimator(s.reverse, s.forward, s.levels, response, s.bootstrap)

    def cells(self, record: EstimatedLevel) -> tuple[str, ...]:
        """The mean over the levels to which it responds."""
        return (f"{record.mean_shift.signed()}, {record.levels_read} of {len(record.response)} levels",)
