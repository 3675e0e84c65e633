"""Time-shift sampling (Li et al. 2024, "Alleviating exposure bias in diffusion models through sampling with shifted
time steps"), as the paper states it and as its code was released: two different things.

    paper      after a step the state is held to be at that level of a window round the nominal one whose variance is
               nearest to the state's own (over all pixels, image by image); the network is told that level and the next
               step starts from it
    released   every step but the first aims at a level half a window noisier than its nominal end, every image alike;
               the network goes on being told the nominal level (a solver's further evaluations within the step are
               told the moved end: snrkit's choice, as the released code has solvers of one evaluation)

The paper matches var(x) with sigma^2, as if the data had no variance of their own; `data_variance` adds alpha^2 times
it. Neither acts at the first level of a grid, at or beyond the cut-off at the clean end, or on the clean level itself.
"""

from dataclasses import replace
from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from snrkit.base.errors import SnrkitError
from snrkit.base.value import Value
from snrkit.diffusion.level import Level
from snrkit.diffusion.process import Ddpm, Process
from snrkit.sampling.step import Position, Range

CANDIDATES = 33  # levels of a window in nats


class TimeShift(Value):
    """Move the level of the state (`paper`) or that of the step's end (`released`); a window of 0 is neutral.

    `window` and `cutoff` count in `unit`: table indices, for a process with a table, or nats of logsnr. SnrkitError
    where a window leaves the table or reaches into that of the level before it.
    """

    kind: Literal["time_shift"] = "time_shift"
    variant: Literal["paper", "released"] = Field(
        default="paper",
        description="paper: the state gets the level that its variance fits best; released: each step aims half "
        "a window noisier",
    )
    unit: Literal["index", "nats"] = Field(
        default="index", description="what window and cutoff count: indices of the process's table, or nats of logsnr"
    )
    window: float = Field(
        default=0.0, ge=0, description="width of the window of levels, from end to end, in `unit`; 0 is neutral"
    )
    cutoff: float | None = Field(
        default=None,
        description="no shift at this index and below, or at this logsnr and above; default: a shift everywhere",
    )
    data_variance: float = Field(
        default=0.0,
        ge=0,
        description="Var[x0], for the variant paper; 0: the data's own variance is left out, as the paper does",
    )

    @model_validator(mode="after")
    def _consistent(self) -> "TimeShift":
        if self.unit == "index" and self.window != int(self.window):
            raise ValueError(f"window {self.window} must be a whole number of table indices; or set unit: nats")
        if self.unit == "index" and self.window == 1:
            raise ValueError("window 1 moves nothing, as it is halved to whole indices; give 0, or 2 and more")
        if self.variant == "released" and self.data_variance:
            raise ValueError("data_variance has no effect on variant released; drop it")
        return self

    @property
    def tunable(self) -> dict[str, Range]:
        """The window, in its unit."""
        if self.unit == "nats":
            return {"window": Range(0.0, 0.0, 4.0, coarse=0.1, fine=0.02)}
        return {"window": Range(0.0, 0.0, 200.0, coarse=4.0, fine=2.0, whole=True)}

    def move(self, x: Tensor, position: Position, process: Process) -> Position:
        """The position with its level or its end moved."""
        if self.unit == "index" and not isinstance(process, Ddpm):
            raise SnrkitError("time_shift counts in table indices, and this process has no table; set unit: nats")
        if self.window == 0 or position.index == 0:
            return position
        spared = self._spared(position.here if self.variant == "paper" else position.there, process)
        if bool(spared.all()):
            return position
        if not bool(spared.any()):
            return self._moved(x, position, process)
        rows = ~spared
        some = self._moved(x[rows.to(x.device)], position.at(rows), process)
        here, there = (level.logsnr.expand(len(x)).clone() for level in (position.here, position.there))
        here[rows], there[rows] = some.here.logsnr, some.there.logsnr
        return replace(position, here=process.level(here), there=process.level(there))

    def _moved(self, x: Tensor, position: Position, process: Process) -> Position:
        """The place of images none of which is at or beyond the cut-off."""
        if self.variant == "released":
            return self._aim_noisier(position, process)
        candidates = self._window(position.here, process)
        before = position.grid[position.index - 1]
        known = before.logsnr if position.index == 1 else self._window(before, process)[..., -1]
        if bool((candidates[..., 0] <= known).any()) or bool((candidates[..., -1] >= position.there.logsnr).any()):
            raise self._too_wide(position)
        return Position(
            position.index, position.grid, process.level(self._nearest(x, candidates, process)), position.there
        )

    def _nearest(self, x: Tensor, candidates: Tensor, process: Process) -> Tensor:
        """The logsnr (B,) of the candidates (K,) or (B, K) whose variance is nearest to that of each image.

        What a network is told depends on the state here, so that the host waits for the device at every step.
        """
        levels = process.level(candidates)
        nominal = levels.alpha**2 * self.data_variance + levels.sigma**2
        own = x.double().flatten(1).var(1, correction=0).cpu()[:, None]
        best = (own - nominal).abs().argmin(1, keepdim=True)
        return candidates.expand(len(x), -1).gather(1, best)[:, 0]

    def _aim_noisier(self, position: Position, process: Process) -> Position:
        if position.there.is_clean():
            return position
        aim = self._noisy_edge(position.there, process)
        if bool((aim <= position.here.logsnr).any()):
            raise self._too_wide(position)
        return Position(position.index, position.grid, position.here, process.level(aim))

    def _noisy_edge(self, level: Level, process: Process) -> Tensor:
        """logsnr half a window noisier than the level."""
        if self.unit == "nats":
            return level.logsnr - self.window / 2
        assert isinstance(process, Ddpm)
        return self._looked_up(process.time(level.logsnr).round() + int(self.window) // 2, process)

    def _looked_up(self, index: Tensor, process: Ddpm) -> Tensor:
        """logsnr of table entries. SnrkitError where one leaves the table."""
        for edge in (float(index.max()), float(index.min())):
            if not 0 <= edge <= process.steps - 1:
                raise SnrkitError(
                    f"time_shift: a window of {self.window:g} indices leaves the table of {process.steps} at index "
                    f"{edge:.0f}; make it smaller or set cutoff"
                )
        return process.logsnr(index)

    def _window(self, level: Level, process: Process) -> Tensor:
        """logsnr (K,) or (B, K) of the window round a level, rising."""
        centre = level.logsnr[..., None]
        if self.unit == "nats":
            return centre + self.window * torch.linspace(-0.5, 0.5, CANDIDATES, dtype=torch.float64)
        assert isinstance(process, Ddpm)
        half = int(self.window) // 2
        return self._looked_up(process.time(centre).round() + torch.arange(half, -half - 1, -1), process)

    def _spared(self, level: Level, process: Process) -> Tensor:
        """Which levels are at or beyond the cut-off, shaped as the level."""
        if self.cutoff is None:
            return torch.zeros_like(level.logsnr, dtype=torch.bool)
        if self.unit == "nats":
            return level.logsnr >= self.cutoff
        return process.time(level.logsnr) <= self.cutoff

    def _too_wide(self, position: Position) -> SnrkitError:
        unit = "indices" if self.unit == "index" else "nats"
        return SnrkitError(
            f"time_shift: a window of {self.window:g} {unit} reaches the next levels of the grid in step "
            f"{position.index}; make it smaller, take fewer steps, or set cutoff"
        )
