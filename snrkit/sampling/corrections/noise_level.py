"""Noise level correction (Abuduweili et al. 2025, "Enhancing sample generation of diffusion models using noise level
correction", arXiv 2412.05488): before a step the level of the state is estimated, and the step is made from there.

The paper has a small network r beside the denoiser and writes

    sigma^ = sigma (1 + r(x, sigma))

for the level at which x is held to be, the noise of which approximates its distance from the data. Here the run's
estimator of levels (snrkit fit-estimator) says the level image by image, in every scaling by its logsnr,

    logsnr^ = logsnr + share (E_q[logsnr | x] - logsnr),    1 + r = exp((logsnr - logsnr^)/2)    of sigma/alpha

What differs from the paper: the estimator is asked without the nominal level and is no part of the denoiser's features;
whether the network is told the estimate is an option; and a level moves at most half of the way to the level before or
after it in the grid, and to no level beyond the process's bounds, so that every step still goes to a cleaner one. The
first state of a grid is drawn at its level and is left alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from snrkit.base.value import Value
from snrkit.diffusion.level import Level
from snrkit.diffusion.prediction import SAME, Cond, Denoiser, Prediction, Same, rewrap
from snrkit.diffusion.process import Process
from snrkit.sampling.step import LevelPosterior, NamedEstimator, Position, Range, Sources


class NoiseLevelCorrection(Value):
    """Hold each state to be at the level that the run's estimator finds in it; a share of 0 is neutral."""

    kind: Literal["noise_level_correction"] = "noise_level_correction"
    share: float = Field(
        default=1.0,
        ge=0,
        le=2,
        description="share of the way from the grid's level to the estimated one, in logsnr; 0 is neutral, 1 the "
        "estimate",
    )
    told: Literal["estimated", "nominal"] = Field(
        default="estimated",
        description="level that the network is told where a step begins: the estimate, or the grid's own",
    )
    tunable: ClassVar[dict[str, Range]] = {"share": Range(0.0, 0.0, 1.0, coarse=0.1, fine=0.02)}

    def open(self, sources: Sources, levels: Sequence[Level]) -> "OpenedNoiseLevelCorrection":
        """The correction with its estimator."""
        return OpenedNoiseLevelCorrection(self, sources.estimator(NamedEstimator()) if self.share else None)


@dataclass(frozen=True, slots=True)
class OpenedNoiseLevelCorrection:
    """Noise level correction with the estimator it needs."""

    value: NoiseLevelCorrection
    estimator: LevelPosterior | None

    def move(self, x: Tensor, position: Position, process: Process) -> Position:
        """The position with the level of each image at the estimate. The host waits for the device at every step."""
        if self.estimator is None or position.index == 0:
            return position
        own = position.here.logsnr
        found = own + self.value.share * (self.estimator.mean(x) - own)
        low, high = _room(position, process)
        return replace(position, here=process.level(torch.minimum(torch.maximum(found, low), high)))

    def wrap(self, denoise: Denoiser, position: Position) -> Denoiser:
        """The denoiser, which goes on being told the grid's level if `told` is nominal."""
        if self.value.told == "estimated" or position.here is position.nominal:
            return denoise

        def answer(x: Tensor, level: Level, told: Level | Same | None = SAME, cond: Cond | None = None) -> Prediction:
            known = position.nominal if isinstance(told, Same) and level is position.here else told
            return denoise(x, level, told=known, cond=cond)

        return rewrap(denoise, answer)


def _room(position: Position, process: Process) -> tuple[Tensor, Tensor]:
    """The noisiest and the cleanest logsnr to which a state may be moved, shaped as the level."""
    own = position.here.logsnr
    before, after = position.grid[position.index - 1].logsnr, position.there.logsnr
    noisiest, cleanest = (torch.full_like(own, bound) for bound in process.bounds)
    low, high = torch.maximum((before + own) / 2, noisiest), torch.minimum((own + after) / 2, cleanest)
    return torch.minimum(low, own), torch.maximum(high, own)
