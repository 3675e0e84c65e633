"""Amplification: how much of a small error, added to the state at one level, is left in the image.

A trajectory is run twice with the same noise, once with an error of known size added where step i begins; the gain is
the root mean square of the difference of the images over that of the error. Errors are white, or confined to the low or
the high Haar bands. The exact flow of Gaussian data of variance v has the gain sqrt(v/(alpha^2 v + sigma^2)) from
(alpha, sigma) to the image: what the reading is compared with, v by part from the training split.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from snrkit.level import Level
from snrkit.shift.bootstrap import Bootstrap, Curve
from snrkit.step import Step
from snrkit.streams import FORWARD, stream
from snrkit.wavelet import low_part

SIZE = 1e-3  # of the error, as a share of the state's nominal standard deviation
PARTS = ("all", "low", "high")


@dataclass(frozen=True, slots=True)
class Amplification:
    """Gains by part, one entry a level."""

    logsnr: list[float]
    images: int
    gain: dict[str, Curve]
    gaussian: dict[str, list[float]]


@dataclass(frozen=True, slots=True)
class Nudge:
    """A correction of state that adds `error` where step `index` begins."""

    index: int
    error: Tensor

    def after(self, step: Step) -> Tensor:
        """x_next, moved if the next step is the one."""
        return step.x_next + self.error if step.place.index + 1 == self.index else step.x_next


Walk = Callable[[Tensor, Sequence[Nudge]], Iterable[Step]]
"""Runs the sampler with the same noise every time: from the first state plus an error, with further corrections."""


def errors(shape: tuple[int, ...], seed: int) -> dict[str, Tensor]:
    """White errors (n, C, H, W) of unit variance, and their low and high shares (Haar)."""
    white = torch.from_numpy(stream(FORWARD, seed, 4).standard_normal(shape))
    if min(shape[2:]) < 2:
        return {"all": white}
    low = low_part(white)
    return {"all": white, "low": low, "high": white - low}


@torch.no_grad()
def measure_gain(
    walk: Walk, levels: Sequence[Level], shape: tuple[int, ...], spread: Tensor, seed: int, device: torch.device
) -> dict[str, Tensor]:
    """Squares of difference and of error by part: (L, n, 2). `spread` (L,): the states' nominal standard deviation."""
    plain = _last(walk(torch.zeros((), device=device), ()))
    found: dict[str, Tensor] = {}
    for name, error in errors(shape, seed).items():
        rows = []
        for index in range(len(levels)):
            moved = (SIZE * float(spread[index]) * error).to(device)
            steps = walk(moved, ()) if index == 0 else walk(torch.zeros_like(moved), (Nudge(index, moved),))
            difference = (_last(steps) - plain).flatten(1).square().mean(1)
            rows.append(torch.stack([difference, moved.flatten(1).square().mean(1)], 1).cpu())
        found[name] = torch.stack(rows)
    return found


def _last(steps: Iterable[Step]) -> Tensor:
    x: Tensor | None = None
    for step in steps:
        x = step.x_next
    assert x is not None
    return x.double()


def read_gain(
    found: dict[str, Tensor], levels: Sequence[Level], variances: dict[str, Tensor], bootstrap: Bootstrap
) -> Amplification:
    """The gains with intervals; `variances`: Var[x0] (G,) of the coefficients that make up each part."""
    images = next(iter(found.values())).shape[1]
    weights = bootstrap.weights(torch.arange(images), 4)
    gains = {
        name: bootstrap.curve(((squares[..., 0] @ weights.T) / (squares[..., 1] @ weights.T)).sqrt())
        for name, squares in found.items()
    }
    alpha = torch.stack([level.alpha for level in levels])[:, None]
    sigma = torch.stack([level.sigma for level in levels])[:, None]
    flow = {name: (v / (alpha**2 * v + sigma**2)).mean(1).sqrt().tolist() for name, v in variances.items()}
    return Amplification([float(level.logsnr) for level in levels], images, gains, flow)


def part_variances(by_band: Tensor, spectrum: Tensor) -> dict[str, Tensor]:
    """Var[x0] behind each part: the Hartley spectrum for white errors, Haar bands (4,) for the others."""
    return {"all": spectrum, "low": by_band[:1], "high": by_band[1:]}
