"""Averages of weights, kept while training or made afterwards.

    ema          avg <- beta*avg + (1 - beta)*w, beta from a half-life in images (Karras et al. 2022)
    ema_decay    the same with a fixed beta a step
    power        beta = (1 - batch/images_next)^(gamma + 1): weights as a power of time, whose width relative to the run
                 stays (Karras et al. 2024)

Any width can be had afterwards from snapshots of one or more power averages, by least squares between their profiles:
`posthoc`. Averaging snapshots geometrically is something else, `snapshots`.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Protocol

import numpy as np
import torch
from pydantic import BeforeValidator, Field
from torch import Tensor, nn

from snrkit.base.value import Value

WIDEST = 0.28  # of a power average made afterwards; a flat one over the whole run has 0.289


class Averaging(Protocol):
    """How fast an average forgets."""

    @property
    def name(self) -> str:
        """How checkpoints and reports call it."""

    def beta(self, images: int, batch: int) -> float:
        """What is kept of the average at a step of `batch` images that starts at `images`; 0 at the first."""

    def span(self, batch: int) -> float:
        """How far back it looks, in images, to compare averages by."""


class HalfLife(Value):
    """An exponential average whose half-life ramps up: min(half_life, ramp * images seen), both counted in images."""

    kind: Literal["ema"] = "ema"
    half_life: float = Field(default=500_000, gt=0, description="images after which weights count half in the average")
    ramp: float | None = Field(
        default=0.05,
        gt=0,
        description="half-life as a share of the images seen, while that is shorter than half_life; null: no ramp",
    )

    @property
    def name(self) -> str:
        return f"ema-{self.half_life:.0f}"

    def beta(self, images: int, batch: int) -> float:
        """0.5 to the power of batch over the half-life."""
        half_life = self.half_life if self.ramp is None else min(self.half_life, self.ramp * images)
        return 0.5 ** (batch / half_life) if half_life > 0 else 0.0

    def span(self, batch: int) -> float:
        return self.half_life


class Decay(Value):
    """An exponential average by its decay a step; `warmup` takes min(decay, (1 + n)/(10 + n)) after n steps."""

    kind: Literal["ema_decay"] = "ema_decay"
    decay: float = Field(default=0.9999, gt=0, lt=1, description="share of the average that stays in each step (beta)")
    warmup: bool = Field(default=True, description="keep (1 + n)/(10 + n) of the average at most, after n steps")

    @property
    def name(self) -> str:
        return f"ema-decay-{self.decay:g}"

    def beta(self, images: int, batch: int) -> float:
        """The decay, less at the beginning."""
        steps = images / batch
        if not images:
            return 0.0
        return min(self.decay, (1 + steps) / (10 + steps)) if self.warmup else self.decay

    def span(self, batch: int) -> float:
        """The half-life that the decay amounts to."""
        return batch * math.log(0.5) / math.log(self.decay)


class Power(Value):
    """A power-function average: w(tau) grows as tau^gamma up to now, of relative standard deviation `width`.

    Karras et al. 2024, eq. 2 and 3; they keep 0.05 and 0.10.
    """

    kind: Literal["power"] = "power"
    width: float = Field(
        default=0.10,
        gt=0,
        lt=0.28,
        description="standard deviation of its weights in training time, as a share of the images seen "
        "(sigma_rel of Karras et al. 2024)",
    )

    @property
    def name(self) -> str:
        return f"power-{self.width:g}"

    @property
    def gamma(self) -> float:
        """The exponent of the weights tau^gamma that have this relative width."""
        return gamma_of(self.width)

    def beta(self, images: int, batch: int) -> float:
        """(1 - batch/(images + batch))^(gamma + 1)."""
        return float((images / (images + batch)) ** (self.gamma + 1))

    def span(self, batch: int) -> float:
        """Grows with the run: beyond any half-life."""
        return math.inf


AnyAveraging = Annotated[
    HalfLife | Decay | Power,
    Field(discriminator="kind"),
    BeforeValidator(lambda value: {"kind": "ema", **value} if isinstance(value, Mapping) else value),
]


def gamma_of(width: float) -> float:
    """The exponent of a power profile of relative standard deviation `width`."""
    inverse = width**-2
    roots = np.roots([1, 7, 16 - inverse, 12 - inverse])
    return float(max(root.real for root in roots if abs(root.imag) < 1e-9 * abs(root)))


def width_of(gamma: float) -> float:
    """sqrt((gamma + 1)/((gamma + 2)^2 (gamma + 3))) (Karras et al. 2024, eq. 123)."""
    return math.sqrt((gamma + 1) / ((gamma + 2) ** 2 * (gamma + 3)))


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A power average as it stood: its exponent, and the images seen."""

    gamma: float
    images: float


def posthoc(snapshots: Sequence[Snapshot], wanted: Snapshot) -> np.ndarray[Any, Any]:
    """Coefficients (n,) of snapshots whose sum is nearest to the profile that is wanted (Karras et al. 2024, app. C).

    They sum to 1 and may be negative. Solved in float64.
    """
    a = np.array([[_product(one, other) for other in snapshots] for one in snapshots])
    b = np.array([_product(one, wanted) for one in snapshots])
    found = np.linalg.solve(a, b)
    return np.asarray(found / found.sum())


def _product(one: Snapshot, other: Snapshot) -> float:
    """The inner product of two profiles p(tau) = (gamma + 1) tau^gamma/t^(gamma + 1) on (0, t)."""
    ratio = one.images / other.images
    power = other.gamma if one.images < other.images else -one.gamma
    scale = (one.gamma + 1) * (other.gamma + 1) / ((one.gamma + other.gamma + 1) * max(one.images, other.images))
    return float(scale * ratio**power)


def distance(coefficients: np.ndarray[Any, Any], snapshots: Sequence[Snapshot], wanted: Snapshot) -> float:
    """The L2 distance of the rebuilt profile from the one that is wanted, over the latter's norm."""
    products = np.array([[_product(one, other) for other in snapshots] for one in snapshots])
    across = np.array([_product(one, wanted) for one in snapshots])
    own = _product(wanted, wanted)
    gap = coefficients @ products @ coefficients - 2 * coefficients @ across + own
    return math.sqrt(max(0.0, gap) / own)


def geometric(count: int, beta: float) -> np.ndarray[Any, Any]:
    """Coefficients (count,) in proportion to beta^(count - 1 - i), oldest first: an average of snapshots."""
    found = beta ** np.arange(count - 1, -1, -1, dtype=np.float64)
    return np.asarray(found / found.sum())


class Average:
    """The tracked copy of a network's parameters (float32) and buffers, which must stay the same tensor objects."""

    def __init__(self, value: Averaging, network: nn.Module) -> None:
        self.value = value
        live = {name: tensor.detach() for name, tensor in network.state_dict().items()}
        self.tensors = {name: tensor.clone() for name, tensor in live.items()}
        self._moving = [(self.tensors[n], t) for n, t in live.items() if t.is_floating_point()]
        self._fixed = [(self.tensors[n], t) for n, t in live.items() if not t.is_floating_point()]

    def update(self, images: int, batch: int) -> None:
        """Move towards the network's weights after a step of `batch` images that started at `images`."""
        mine, theirs = [list(side) for side in zip(*self._moving, strict=True)]
        torch._foreach_lerp_(mine, theirs, 1 - self.value.beta(images, batch))
        for kept, tensor in self._fixed:
            kept.copy_(tensor)

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over saved values."""
        for name, tensor in self.tensors.items():
            tensor.copy_(tensors[name])


def made_afterwards(name: str) -> bool:
    """Whether these weights are made by `snrkit average`, not kept in training."""
    return name.startswith(("posthoc-", "snapshots-"))


def afterwards(name: str) -> tuple[str, float]:
    """(posthoc or snapshots, its number) of the name of such weights. ValueError for another name."""
    kind, _, number = name.partition("-")
    return kind, float(number)


def afterwards_faults(name: str) -> Iterator[str]:
    """What is wrong with the name of weights that `snrkit average` makes."""
    try:
        kind, number = afterwards(name)
    except ValueError:
        yield f"'{name}' is no posthoc-<width> or snapshots-<decay>, such as posthoc-0.12"
        return
    if kind == "posthoc" and not 0 < number < WIDEST:
        yield f"'{name}': a width lies between 0 and {WIDEST}"
    if kind == "snapshots" and not 0 < number <= 1:
        yield f"'{name}': a decay lies in (0, 1]; 1 weighs all snapshots alike"
    if not name.endswith(f"-{number:g}"):
        yield f"'{name}' is written {kind}-{number:g}"


def combine(coefficients: Iterable[float], sets: Iterable[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The weighted sum of sets of tensors, in float64; what is not floating is the last set's."""
    total: dict[str, Tensor] = {}
    like: Mapping[str, Tensor] = {}
    for coefficient, like in zip(coefficients, sets, strict=True):
        for name, tensor in like.items():
            part = tensor.double() * coefficient if tensor.is_floating_point() else tensor
            total[name] = total[name] + part if name in total and tensor.is_floating_point() else part
    return {name: tensor.to(like[name].dtype) for name, tensor in total.items()}


def longest(values: Iterable[Averaging], batch: int) -> Averaging | None:
    """What commands sample by default: the exponential average that looks back farthest, else the widest."""
    known = list(values)
    exponential = [value for value in known if math.isfinite(value.span(batch))]
    if exponential:
        return max(exponential, key=lambda value: value.span(batch))
    return max((value for value in known if isinstance(value, Power)), key=lambda value: value.width, default=None)
