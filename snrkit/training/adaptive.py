"""What learns beside the network: where to look, how to balance levels, and how uncertain each level is.

All three act on the loss of one image at u, the level sampler's own uniform, in this order:

    balance      multiplied by 1/EMA of the loss, or of its variance, in bins of u: changes the objective
    uncertainty  loss exp(-v) + v with v learned from the level (Karras et al. 2024, eq. 21): changes the objective, so
                 that every level counts alike at the optimum
    importance   u drawn in proportion to the EMA of the loss, and the loss divided by that density (Kingma & Gao
                 2023): the objective stays, its variance falls

Bins are all-reduced at the end of a step and used from the next one on, so that the number of processes and of
micro-batches changes nothing. They are kept in checkpoints.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from snrkit.base.distributed import World
from snrkit.base.streams import UNCERTAINTY
from snrkit.base.transfer import send
from snrkit.base.value import Seed, Value
from snrkit.training.objective import LOWEST_LOGSNR

ENOUGH = 10  # observations of every bin, before which bins are not used
TINY = 1e-12
LIMIT = 10.0  # of the learned uncertainty, nats


class Importance(Value):
    """Adaptive importance sampling of levels: bins of the level sampler's uniforms, drawn by the EMA of their loss."""

    bins: int = Field(
        default=100, ge=2, le=10_000, description="number of equal bins of the level sampler's uniforms u"
    )
    memory: float = Field(default=200, ge=1, description="observations of a bin after which half is forgotten")
    uniform: float = Field(default=0.01, gt=0, lt=1, description="share of plain draws mixed in")


class Balance(Value):
    """Loss-aware weighting: every bin's loss, or its variance, over its own EMA, held within `limit` of the mean."""

    by: Literal["loss", "variance"] = Field(
        default="loss", description="what a bin's losses are divided by: their moving average, or their variance"
    )
    bins: int = Field(
        default=100, ge=2, le=10_000, description="number of equal bins of the level sampler's uniforms u"
    )
    memory: float = Field(default=200, ge=1, description="observations of a bin after which half is forgotten")
    limit: float = Field(
        default=10.0,
        gt=1,
        description="largest factor of a bin's losses, 1 being that of the geometric mean of all bins; the least "
        "is 1/limit",
    )


class Uncertainty(Value):
    """EDM2's learned uncertainty: a linear layer on Fourier features of -logsnr/8, thrown away after training.

    At its optimum it undoes whatever the weighting says of levels, as far as e^-10 to e^10 reach.
    """

    features: int = Field(
        default=128, ge=2, le=2**14, description="random Fourier features of -logsnr/8 in its linear layer"
    )
    seed: Seed = Field(default=0, description="seed of the frequencies and phases of its Fourier features")


class Bins:
    """Exponential averages of a loss and of its square in equal bins of u; float64, on the CPU."""

    def __init__(self, bins: int, memory: float) -> None:
        self.memory = memory
        self.mean, self.square, self.count = (torch.zeros(bins, dtype=torch.float64) for _ in range(3))
        self._sums = torch.zeros(3, bins, dtype=torch.float64)

    def index(self, u: Tensor) -> Tensor:
        """The bin of every u in [0, 1)."""
        return (u * len(self.mean)).long().clamp(0, len(self.mean) - 1)

    @property
    def ready(self) -> bool:
        """Whether every bin has been seen often enough."""
        return bool((self.count >= ENOUGH).all())

    def observe(self, u: Tensor, loss: Tensor, share: Tensor) -> None:
        """Note the losses (B,) at u (B,), each as `share` (B,) of an observation; what is not finite is not noted.

        u lies on the host, `share` beside the losses.
        """
        loss = loss.detach().double()
        good = loss.isfinite()
        weight, loss = share.double() * good, loss.where(good, 0.0)
        self._sums = send(self._sums, loss.device)  # where the losses are, so that nothing waits for them
        rows = torch.stack([weight, weight * loss, weight * loss.square()])
        self._sums.index_add_(1, send(self.index(u), loss.device), rows)

    def update(self, world: World) -> None:
        """Take in what all processes noted in a step: a plain mean at first, an exponential one later."""
        seen, loss, square = world.sum(self._sums.to(world.device)).cpu().clone()
        hit = seen > 0
        once = torch.where(hit, seen, 1.0)
        forget = torch.maximum(1 - 0.5 ** (seen / self.memory), seen / (self.count + once))
        for kept, new in ((self.mean, loss), (self.square, square)):
            kept.add_(torch.where(hit, forget * (new / once - kept), 0.0))
        self.count += seen
        self._sums.zero_()

    def tensors(self) -> dict[str, Tensor]:
        """What a checkpoint keeps."""
        return {"mean": self.mean, "square": self.square, "count": self.count}

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over saved values."""
        for name, tensor in self.tensors().items():
            tensor.copy_(tensors[name])


def warp(value: Importance, bins: Bins, u: Tensor) -> tuple[Tensor, Tensor]:
    """(u', 1/density there) of uniforms u (B,): u' follows the bins' losses, increasing in u."""
    if not bins.ready or float(bins.mean.sum()) <= 0:
        return u, torch.ones_like(u)
    share = (1 - value.uniform) * bins.mean / bins.mean.sum() + value.uniform / len(bins.mean)
    ends = share.cumsum(0)
    place = torch.searchsorted(ends, u * ends[-1], right=True).clamp(max=len(share) - 1)
    inside = ((u * ends[-1] - (ends - share)[place]) / share[place]).clamp(0, 1 - 1e-12)
    return (place + inside) / len(share), 1 / (share[place] * len(share))


def balance_factor(value: Balance, bins: Bins, u: Tensor) -> Tensor:
    """(B,) 1/EMA of the loss or of its variance, times the geometric mean of that over bins, within the limit."""
    if not bins.ready or float(bins.mean.max()) <= 0:
        return torch.ones_like(u)
    spread = bins.mean if value.by == "loss" else (bins.square - bins.mean.square()).clamp(min=0)
    spread = spread.clamp(min=float(spread.max()) * TINY)
    typical = spread.log().mean().exp()
    return (typical / spread).clamp(1 / value.limit, value.limit)[bins.index(u)]


class UncertaintyModule(nn.Module):
    """v(logsnr): zero at first."""

    frequencies: Tensor
    phases: Tensor

    def __init__(self, value: Uncertainty) -> None:
        super().__init__()
        rng = UNCERTAINTY.open(value.seed)
        for name, drawn in (
            ("frequencies", rng.standard_normal(value.features)),
            ("phases", rng.random(value.features)),
        ):
            self.register_buffer(name, torch.from_numpy(np.asarray(drawn, dtype=np.float32)), persistent=False)
        self.linear = nn.Linear(value.features, 1, bias=False)
        nn.init.zeros_(self.linear.weight)

    def forward(self, logsnr: Tensor) -> Tensor:
        """(B,) of logsnr (B,), float32."""
        noise = send(-logsnr.clamp(min=LOWEST_LOGSNR).float(), self.frequencies.device) / 8
        angle = 2 * math.pi * (noise[:, None] * self.frequencies + self.phases)
        out: Tensor = self.linear(math.sqrt(2) * torch.cos(angle))[:, 0]
        return out.clamp(-LIMIT, LIMIT)


@dataclass(slots=True)
class Adaptive:
    """What adapts to the losses seen: the state of all three, each with its value, or None."""

    importance: tuple[Importance, Bins] | None = None
    balance: tuple[Balance, Bins] | None = None
    uncertainty: UncertaintyModule | None = None

    def draw(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """(u', factor): where to look instead of u (B,), and what the loss there is multiplied by."""
        return (u, torch.ones_like(u)) if self.importance is None else warp(*self.importance, u)

    def loss(self, losses: Tensor, u: Tensor, logsnr: Tensor, factor: Tensor) -> Tensor:
        """The loss (B,) to minimise of the weighted errors `losses` (B,) at u and logsnr; notes what it sees.

        u and logsnr lie on the host, `factor` beside the losses and of their dtype.
        """
        if self.balance is not None:
            value, bins = self.balance
            plain = losses
            losses = losses * send(balance_factor(value, bins, u).to(losses.dtype), losses.device)
            bins.observe(u, plain, factor)
        extra = torch.zeros_like(losses)
        if self.uncertainty is not None:
            extra = self.uncertainty(logsnr)
            losses = losses * torch.exp(-extra)
        if self.importance is not None:  # what moves the network; draws inside a bin are plain
            self.importance[1].observe(u, losses, torch.ones_like(losses))
        return (losses + extra) * factor

    def update(self, world: World) -> None:
        """At the end of a step."""
        for held in (self.importance, self.balance):
            if held is not None:
                held[1].update(world)

    def tensors(self) -> dict[str, Tensor]:
        """What a checkpoint keeps beside the optimizer's moments."""
        parts = {"importance": self.importance, "balance": self.balance}
        found = {f"{n}/{k}": t for n, held in parts.items() if held for k, t in held[1].tensors().items()}
        if self.uncertainty is not None:
            found |= {f"uncertainty/{k}": t.detach() for k, t in self.uncertainty.state_dict().items()}
        return found

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over saved values."""

        def under(name: str) -> dict[str, Tensor]:
            return {k.removeprefix(f"{name}/"): t for k, t in tensors.items() if k.startswith(f"{name}/")}

        for name, held in (("importance", self.importance), ("balance", self.balance)):
            if held is not None:
                held[1].load(under(name))
        if self.uncertainty is not None:
            self.uncertainty.load_state_dict(under("uncertainty"))
