"""Why: the solver or the network?

The sampler's grid is refined, every step cut into equal parts in logsnr, and walked by Heun without corrections from
the same first states: what is left of the shift there, at the sampler's own levels, is the network's, the rest the
solver's and its corrections'.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from snrkit.diffusion.level import Level
from snrkit.diffusion.process import Process
from snrkit.sampling.sampler import OpenedSampler
from snrkit.sampling.solvers import Heun
from snrkit.shift.arms import Arm
from snrkit.shift.bootstrap import OF_FORWARD, OF_REVERSE, Bootstrap, Curve, Number
from snrkit.shift.measure import Reference, pixel_ratio


@dataclass(frozen=True, slots=True)
class Split:
    """One reading, split in two; nats."""

    network: Curve
    solver: Curve
    mean_network: Number
    mean_solver: Number


@dataclass(frozen=True, slots=True)
class Why:
    """The norm gap and ln of the variance ratio, of the refined reference and of the sampler beyond it."""

    substeps: int
    nfe: int  # of the reference
    norm_gap: Split
    log_variance_ratio: Split


def refined(ready: OpenedSampler, process: Process, substeps: int) -> tuple[OpenedSampler, list[int]]:
    """(Heun on the grid with every step cut into `substeps`, the indices of the old levels in it)."""
    levels: list[Level] = []
    visited: list[int] = []
    for here, there in zip(ready.levels[:-1], ready.levels[1:], strict=True):
        visited.append(len(levels))
        levels.append(here)
        if math.isfinite(float(here.logsnr)) and math.isfinite(float(there.logsnr)):
            between = torch.linspace(float(here.logsnr), float(there.logsnr), substeps + 1, dtype=torch.float64)[1:-1]
            snapped = torch.unique(process.snap(between))
            inside = (snapped > here.logsnr) & (snapped < there.logsnr)
            levels += [process.level(value) for value in snapped[inside]]
    return replace(ready, levels=(*levels, ready.levels[-1]), solver=Heun(), corrections=()), visited


def read_why(
    reverse: Arm, ideal: Arm, forward: Arm, levels: Sequence[Level], reference: Reference, bootstrap: Bootstrap,
    ready: OpenedSampler, substeps: int,
) -> Why:  # fmt: skip
    """The split; both arms of trajectories begin at the same states, so images are resampled together."""
    weights, of_forward = bootstrap.weights(reverse.groups, OF_REVERSE), bootstrap.weights(forward.groups, OF_FORWARD)
    expected = forward.eps_square @ of_forward.T
    gaps = [((arm.eps_square @ weights.T) / expected).log() for arm in (reverse, ideal)]
    ratios = [pixel_ratio(arm, levels, reference, weights).log() for arm in (reverse, ideal)]
    gap, ratio = _split(gaps[0], gaps[1], bootstrap), _split(ratios[0], ratios[1], bootstrap)
    return Why(substeps, 2 * (len(ready.levels) - 1) - 1, gap, ratio)


def _split(whole: Tensor, network: Tensor, bootstrap: Bootstrap) -> Split:
    rest = whole - network
    return Split(
        bootstrap.curve(network), bootstrap.curve(rest),
        bootstrap.number(network.mean(0)), bootstrap.number(rest.mean(0)),
    )  # fmt: skip
