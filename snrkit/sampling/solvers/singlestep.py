"""What solvers share that ask the network once more within a step: where they ask, and where a step ends.

They ask half-way in logsnr. That level is not moved to a table: a network with one is told a time between two of its
entries, as k-diffusion and the code of DPM-Solver have it. A step from pure noise has no middle; the second answer is
then asked where the first one was, and changes nothing.
"""

import torch
from torch import Tensor

from snrkit.diffusion.level import Level, broadcast
from snrkit.diffusion.prediction import Prediction
from snrkit.diffusion.process import Process
from snrkit.sampling.solvers.euler import recompose


def midway(process: Process, here: Level, end: Tensor) -> Level:
    """The level half-way in logsnr from `here` to the logsnr `end`, () or (B,); `here` where that is pure noise."""
    return process.level(torch.where(here.logsnr.isinf(), here.logsnr, (here.logsnr + end) / 2))


def by_midpoint(first: Prediction, second: Prediction, here: Level, end: Level) -> Tensor:
    """The step of DPM-Solver++(2S) from `here` to `end`, with the x0 of its middle for all of it.

    (sigma'/sigma) x - alpha' expm1(-h) x0_second, h in half-logsnr, written so that nothing divides by alpha.
    """
    gain = -end.alpha * torch.expm1((here.logsnr - end.logsnr) / 2)
    return recompose(first, end) + broadcast(gain, first.x0) * (second.x0 - first.x0)
