"""One sampler of an experiment, what sampling needs beside it, and what it costs."""

from typing import Literal

import torch
from pydantic import Field, field_validator
from torch import Tensor

from snrkit.corrections import AnyCorrection
from snrkit.denoiser import check_readable
from snrkit.grid import AnyGrid
from snrkit.level import Level
from snrkit.prediction import SAME, Cond, Prediction, Same, Target, Wrapped
from snrkit.process import Process
from snrkit.sample import sample, start
from snrkit.solvers import AnySolver
from snrkit.value import Value


class Sampler(Value):
    """A grid, a solver and corrections."""

    grid: AnyGrid
    solver: AnySolver
    corrections: tuple[AnyCorrection, ...] = ()
    start: Literal["published", "exact"] = Field(
        "published", description="exact adds the data's variance to the first state, for controls"
    )


class SampleConfig(Value):
    """Which images to make, and with which weights."""

    seeds: str = Field("0-999", description="ranges of seeds, such as 0-2999 or 0-99,200-299")
    batch: int = Field(500, ge=1)
    labels: int | None = Field(None, ge=0, description="one label for all images; by default uniform over classes")
    average: str | None = Field(None, description="ema-<half-life>, or network for the raw weights; default: longest")
    checkpoint: int | None = Field(None, ge=0, description="images seen by the checkpoint; default: the newest")
    npz: bool = Field(False, description="also write all images into one .npz (arr_0)")

    @field_validator("seeds", mode="before")
    @classmethod
    def _text(cls, seeds: object) -> object:
        return str(seeds) if isinstance(seeds, int) and not isinstance(seeds, bool) else seeds

    @field_validator("seeds")
    @classmethod
    def _readable(cls, seeds: str) -> str:
        if not parse_seeds(seeds):
            raise ValueError("no seeds given")
        return seeds


def parse_seeds(text: str) -> list[int]:
    """The seeds of '0-99,200-299'. ValueError when malformed or repeated."""
    seeds: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdigit() or (dash and not last.isdigit()):
            raise ValueError(f"seeds '{text}' are not ranges such as 0-2999 or 0-99,200-299")
        seeds.extend(range(int(first), int(last if dash else first) + 1))
    if len(set(seeds)) != len(seeds):
        raise ValueError(f"seeds '{text}' repeat")
    return seeds


def rehearse(sampler: Sampler, process: Process, target: Target, shape: tuple[int, int, int]) -> int:
    """The number of network calls per image, counted by running the sampler once on a dummy that says x0 = 0.

    Raises SnrkitError for whatever cannot work: repeated levels, a target that says nothing where the grid starts, a
    correction that is undefined there.
    """
    levels = sampler.grid.levels(process)
    check_readable(levels[0], target)
    calls = 0

    def answer(x: Tensor, level: Level, told: Level | Same | None = SAME, cond: Cond | None = None) -> Prediction:
        nonlocal calls
        calls += 1
        return Prediction(torch.zeros_like(x), x)

    x = start(process, torch.zeros(1, *shape), levels[0])
    cond = Cond(labels=torch.zeros(1, dtype=torch.int64))
    steps = sample(
        Wrapped(process, answer), sampler.solver, levels, x,
        corrections=sampler.corrections, noise=torch.zeros_like, cond=cond,
    )  # fmt: skip
    for _ in steps:
        pass
    return calls
