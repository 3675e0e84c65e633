"""Averages of weights: avg <- beta*avg + (1 - beta)*w, beta from a half-life in images (Karras et al. 2022)."""

from collections.abc import Iterable, Mapping

import torch
from pydantic import Field
from torch import Tensor, nn

from snrkit.value import Value


class HalfLife(Value):
    """An exponential average whose half-life ramps up: min(half_life, ramp * images seen), both counted in images."""

    half_life: float = Field(500_000, gt=0)
    ramp: float | None = Field(0.05, gt=0)

    @property
    def name(self) -> str:
        """How checkpoints and reports call it."""
        return f"ema-{self.half_life:.0f}"

    def beta(self, images: int, batch: int) -> float:
        """The decay of one step of `batch` images after `images` images; 0 at the first."""
        half_life = self.half_life if self.ramp is None else min(self.half_life, self.ramp * images)
        return 0.5 ** (batch / half_life) if half_life > 0 else 0.0


class Average:
    """The tracked copy of a network's parameters (float32) and buffers, which must stay the same tensor objects."""

    def __init__(self, value: HalfLife, network: nn.Module) -> None:
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


def longest(values: Iterable[HalfLife]) -> HalfLife | None:
    """The average with the longest half-life, the default of every command that samples."""
    return max(values, key=lambda value: value.half_life, default=None)
