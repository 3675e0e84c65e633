"""From what a network says to what it means.

State and belief are two linear equations in the two unknowns:

    x = alpha * x0 + sigma * eps        y = a * x0 + b * eps

so one 2x2 solve reads every prediction type, and `alpha*x0 + sigma*eps == x` holds after it. The pairs (a, b):

    x0     (1, 0)                                                       eps    (0, 1)
    v      (-sigma, alpha)/sqrt(alpha^2 + sigma^2)   (Salimans & Ho 2022)
    flow   (-1, 1)                                   (Lipman et al. 2023)
    score  (0, -1/sigma)                             (Song et al. 2021)
    posterior_mean   (p + q alpha, q sigma), of a table   (Ho et al. 2020)

The determinant alpha*b - sigma*a vanishes only for eps and score at alpha = 0, where they say nothing about x0.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Final, Literal, Protocol, runtime_checkable

import torch
from pydantic import Field
from torch import Tensor

from snrkit.base.transfer import send
from snrkit.base.value import LONGEST_TABLE, Value
from snrkit.diffusion.betas import Betas, LinearBetas
from snrkit.diffusion.level import Level, broadcast
from snrkit.diffusion.process import Ddpm, Process


@dataclass(frozen=True, slots=True)
class Prediction:
    """What the model believes the state is made of: x0 and eps, each shaped as the state (B, *).

    `spread` (B, *), of a network that learned it: where the log variance of a step lies between that of the posterior
    (-1) and beta (1), number by number (Nichol & Dhariwal 2021, equation 15). What changes a belief leaves it.
    """

    x0: Tensor
    eps: Tensor
    spread: Tensor | None = None


Alone = Literal["middle", "all"]  # of the attention layers of a network, in the order in which a state passes them


@dataclass(frozen=True, slots=True)
class Cond:
    """What a network is told besides the noise level. None: the network does not take it."""

    labels: Tensor | None = None  # (B,) int64; -1 is the learned null class
    scalars: Tensor | None = None  # (B, S) float32, in the order of the config's `scalars`
    augment: Tensor | None = None  # (B, 9) float32, parameters of the augmentation; zeros when sampling
    alone: Alone | None = None  # attention layers in which every token attends to itself alone, of networks that can

    def at(self, rows: slice | Tensor) -> "Cond":
        """The same of some images."""
        return self._each(lambda part: part[rows])

    def to(self, device: torch.device | str) -> "Cond":
        """The same on a device."""
        return self._each(lambda part: send(part, torch.device(device)))

    def _each(self, change: Callable[[Tensor], Tensor]) -> "Cond":
        parts = (self.labels, self.scalars, self.augment)
        labels, scalars, augment = (None if part is None else change(part) for part in parts)
        return Cond(labels, scalars, augment, self.alone)


class Same:
    """The type of SAME, the default of `told`: the network is told the level where the state is."""


SAME: Final = Same()


class Network(Protocol):
    """A raw network: it knows nothing of noise."""

    def __call__(self, x: Tensor, time: Tensor, cond: Cond | None = None) -> Tensor:
        """F of shape (B, *) from x (B, *) and time (B,) float32; a NaN means "not told", to networks that know it."""


@runtime_checkable
class Attends(Protocol):
    """A network that heeds `Cond.alone`, where it has attention."""

    @property
    def attends(self) -> bool:
        """Whether it has any."""


class Denoiser(Protocol):
    """A model that reads a state. `level` is where x is, `told` what the network is informed of."""

    @property
    def process(self) -> Process:
        """The process whose levels it understands."""

    def __call__(
        self, x: Tensor, level: Level, *, told: Level | Same | None = SAME, cond: Cond | None = None
    ) -> Prediction:
        """The belief about x (B, *) at `level`; `told=None` asks without informing the network of the level."""


class Target(Protocol):
    """What a network is trained to say, as the pair (a, b) of y = a*x0 + b*eps."""

    def direction(self, level: Level) -> tuple[Tensor, Tensor]:
        """(a, b) at `level`, float64, shaped as the level."""


class X0(Value):
    """The clean image."""

    kind: Literal["x0"] = "x0"

    def direction(self, level: Level) -> tuple[Tensor, Tensor]:
        return torch.ones_like(level.alpha), torch.zeros_like(level.alpha)


class Eps(Value):
    """The noise (Ho et al. 2020). Says nothing of x0 at alpha = 0."""

    kind: Literal["eps"] = "eps"

    def direction(self, level: Level) -> tuple[Tensor, Tensor]:
        return torch.zeros_like(level.alpha), torch.ones_like(level.alpha)


class V(Value):
    """The velocity of Salimans & Ho 2022, alpha*eps - sigma*x0 over the norm of (alpha, sigma), which is 1 in vp."""

    kind: Literal["v"] = "v"

    def direction(self, level: Level) -> tuple[Tensor, Tensor]:
        """(-sigma, alpha)/sqrt(alpha^2 + sigma^2)."""
        norm = torch.hypot(level.alpha, level.sigma)
        return -level.sigma / norm, level.alpha / norm


class FlowVelocity(Value):
    """The velocity of flow matching, eps - x0 (Lipman et al. 2023)."""

    kind: Literal["flow"] = "flow"

    def direction(self, level: Level) -> tuple[Tensor, Tensor]:
        return -torch.ones_like(level.alpha), torch.ones_like(level.alpha)


class Score(Value):
    """The score of the noisy marginal, -eps/sigma (Song et al. 2021). Says nothing of x0 at alpha = 0."""

    kind: Literal["score"] = "score"

    def direction(self, level: Level) -> tuple[Tensor, Tensor]:
        return torch.zeros_like(level.alpha), -1 / level.sigma


def posterior_weights(logsnr: Tensor, after: Tensor) -> tuple[Tensor, Tensor]:
    """(p, q) of the posterior mean p x0 + q x, in vp, of the state where alpha is `after`, given x0 and x at `logsnr`.

    p = after (1 - r) and q = r after/alpha, r the signal-to-noise ratio at x over the one there (Ho et al. 2020,
    equation 7); also where one of the two is pure noise or clean.
    """
    alpha, variance = torch.sigmoid(logsnr).sqrt(), torch.sigmoid(-logsnr)
    left = (1 - after.square()) / (after * variance)  # q over alpha
    return after - alpha.square() * left, alpha * left


class PosteriorMean(Value):
    """The mean of the state one entry of a table cleaner, given this one and x0 (Ho et al. 2020, equation 7).

    mu = p x0 + q x, in vp, with p = alpha' (1 - r) and q = r alpha'/alpha, where alpha' is that of the cleaner entry
    and r the signal-to-noise ratio here over the one there; at the cleanest entry and beyond it is x0. Between entries
    alpha' is interpolated in the index. Nearly all of it is the state: errors of a network grow by 1/p as x0 is read.
    """

    kind: Literal["posterior_mean"] = "posterior_mean"
    betas: Betas = Field(
        default=LinearBetas(), description="what the table is made of: that of the process, if it has one"
    )
    steps: int = Field(default=1000, ge=2, le=LONGEST_TABLE, description="entries of the table")

    def direction(self, level: Level) -> tuple[Tensor, Tensor]:
        """(p + q alpha, q sigma), alpha and sigma those of vp, whatever the scaling of the level."""
        logsnr = level.logsnr.to(device="cpu", dtype=torch.float64)
        table = Ddpm(betas=self.betas, steps=self.steps)
        cleaner = torch.cat([torch.ones(1, dtype=torch.float64), torch.sigmoid(table.table()).sqrt()])  # alpha' of each
        index = table.time(logsnr)
        below = index.floor().long()
        after = torch.lerp(cleaner[below], cleaner[below + 1], index - below)
        p, q = posterior_weights(logsnr, after)
        return p + q * torch.sigmoid(logsnr).sqrt(), q * torch.sigmoid(-logsnr).sqrt()


AnyTarget = Annotated[X0 | Eps | V | FlowVelocity | Score | PosteriorMean, Field(discriminator="kind")]


def determinant(level: Level, target: Target) -> Tensor:
    """alpha*b - sigma*a, float64, shaped as the level; 0 where the target does not determine x0."""
    a, b = target.direction(level)
    return level.alpha * b - level.sigma * a


def solve(x: Tensor, y: Tensor, level: Level, target: Target) -> Prediction:
    """The (x0, eps) for which x = alpha*x0 + sigma*eps and y = a*x0 + b*eps. x and y (B, *)."""
    a, b = target.direction(level)
    det = level.alpha * b - level.sigma * a
    x0 = broadcast(b / det, x) * x - broadcast(level.sigma / det, x) * y
    eps = broadcast(level.alpha / det, x) * y - broadcast(a / det, x) * x
    return Prediction(x0, eps)


def from_x0(x: Tensor, x0: Tensor, level: Level) -> Prediction:
    """The prediction whose clean image is `x0`; sigma must not be 0."""
    alpha, sigma = level.scales(x)
    return Prediction(x0, (x - alpha * x0) / sigma)


Answer = Callable[[Tensor, Level, Level | Same | None, Cond | None], Prediction]


@dataclass(frozen=True, slots=True)
class Wrapped:
    """A denoiser made of a function (x, level, told, cond) -> Prediction."""

    process: Process
    answer: Answer

    def __call__(
        self, x: Tensor, level: Level, *, told: Level | Same | None = SAME, cond: Cond | None = None
    ) -> Prediction:
        """What the function answers."""
        return self.answer(x, level, told, cond)


def rewrap(denoise: Denoiser, answer: Answer) -> Denoiser:
    """`denoise` with its answers replaced; how corrections of belief stack."""
    return Wrapped(denoise.process, answer)
