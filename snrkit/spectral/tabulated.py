"""Level samplers that are tables of logsnr over t, one for each image of a batch or one for all.

    logsnr(u)    the table at t = u, linear between its points
    density      1/(-d logsnr/dt) of the same table, so that schedule and loss agree

Steps at which logsnr falls more than STEEPEST times its mean count as no steeper: what divides by the density stays
bounded.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from snrkit.diffusion.process import Process

STEEPEST = 10.0


@dataclass(frozen=True, slots=True)
class Tabulated:
    """Levels of tables (B, T), float64, strictly falling at T even times from 0 to 1; (1, T) serves every image."""

    table: Tensor

    def logsnr(self, u: Tensor, process: Process) -> Tensor:
        """(B,) at uniforms u (B,) as times."""
        place = u.to(torch.float64) * (self.table.shape[1] - 1)
        left = place.long().clamp(0, self.table.shape[1] - 2)
        rows = self._rows(u)
        first, last = (rows.gather(1, index[:, None])[:, 0] for index in (left, left + 1))
        return first + (place - left) * (last - first)

    def density(self, logsnr: Tensor, process: Process) -> Tensor:
        """(B,) of levels (B,), each in its own image's table; 0 beyond the table's ends."""
        rows, points = self._rows(logsnr), self.table.shape[1]
        logsnr = logsnr.to(torch.float64)
        right = torch.searchsorted(-rows, -logsnr[:, None].contiguous())[:, 0].clamp(1, points - 1)
        first, last = (rows.gather(1, index[:, None])[:, 0] for index in (right - 1, right))
        mean = (rows[:, 0] - rows[:, -1]) / (points - 1)
        fall = torch.minimum(first - last, STEEPEST * mean)
        clean, noisy = rows[:, 0], rows[:, -1]  # a process's table may snap a draw to just beyond them
        clean, noisy = torch.maximum(clean, process.snap(clean)), torch.minimum(noisy, process.snap(noisy))
        inside = (logsnr <= clean) & (logsnr >= noisy)
        return torch.where(inside, 1 / (fall * (points - 1)), 0.0)

    def _rows(self, like: Tensor) -> Tensor:
        return self.table.expand(len(like), -1) if len(self.table) == 1 else self.table
