"""Grids with every step cut into equal parts: what the flow of a network is walked on, for reference.

A step between noisy levels is cut evenly in logsnr. One that begins at pure noise is cut evenly in the angle
atan(sigma/alpha), which is finite there, and one into the clean level at the cleanest level of the process, and evenly
in logsnr down to it. Levels snap to the process's table where there is one, so that a step may have fewer parts.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from snrkit.diffusion.level import Level
from snrkit.diffusion.process import Process


@dataclass(frozen=True, slots=True)
class Refined:
    """The levels of a grid with those between them."""

    levels: tuple[Level, ...]  # of shape (), rising
    visited: tuple[int, ...]  # where the grid's own levels are among them
    even: bool  # whether no cut was moved to a table, so that grids of n and 2n parts share every other level


def refined(levels: Sequence[Level], process: Process, parts: int) -> Refined:
    """A grid of levels of shape () with every step cut into `parts`."""
    found: list[Level] = []
    visited: list[int] = []
    even = True
    for here, there in pairwise(levels):
        visited.append(len(found))
        between = _cuts(here, there, process.bounds[1], parts)
        snapped = torch.unique(process.snap(between))
        inside = snapped[(snapped > here.logsnr) & (snapped < there.logsnr)]
        even = even and torch.equal(inside, between)
        found += [here, *(process.level(value) for value in inside)]
    return Refined((*found, levels[-1]), (*visited, len(found)), even)


def parts_of(levels: Sequence[Level], process: Process, steps: int, multiple: int = 1) -> int:
    """Into how many parts, a multiple, to cut every step for `steps` at least; some steps cannot be cut."""
    room = [len(_cuts(here, there, process.bounds[1], 2)) > 0 for here, there in pairwise(levels)]
    return multiple * max(1, -(-(steps - room.count(False)) // (multiple * max(1, room.count(True)))))


def _cuts(here: Level, there: Level, cleanest: float, parts: int) -> Tensor:
    """logsnr between two levels, rising."""
    low, high = float(here.logsnr), float(there.logsnr)
    clean = math.isinf(high)
    end = cleanest if clean else high
    if low >= end:
        return torch.zeros(0, dtype=torch.float64)
    if math.isinf(low):
        angles = torch.linspace(math.pi / 2, math.atan(math.exp(-end / 2)), parts + 1, dtype=torch.float64)
        cut = -2 * torch.log(torch.tan(angles[1:-1]))
    else:
        cut = torch.linspace(low, end, parts + 1, dtype=torch.float64)[1:-1]
    return torch.cat([cut, torch.tensor([end], dtype=torch.float64)]) if clean else cut
