"""Clipping: how gradients are bounded before the optimizer sees them, in place.

A unit is one output of a layer: the slice of a weight at one index of its first dimension; a vector is one unit. Norms
are Euclidean. Only `global_norm` and `normalize` keep the gradient's direction.
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Protocol

import torch
from pydantic import BeforeValidator, Field, field_validator
from torch import Tensor, nn

from snrkit.base.errors import ConfigError
from snrkit.base.value import Text, Value
from snrkit.networks import output_layer

Positive = Annotated[float, Field(gt=0)]
Named = Sequence[tuple[str, nn.Parameter]]
Bounded = tuple[Tensor, Tensor, Tensor]  # norm of all gradients before and after, whether any was cut; all ()
TINY = 1e-6  # as torch's clip_grad_norm_


class Clip(Protocol):
    """A rule that bounds gradients."""

    def apply(self, named: Named, output: str | None) -> Bounded:
        """Bound the gradients of these parameters, all of which have one, in place; their norm before and after, and
        whether any was cut.

        `output` is the name of the layer that gives the network's output, where the network says it.
        """


def tensor_norms(tensors: list[Tensor]) -> Tensor:
    """The norm of every tensor, (tensors,)."""
    return torch.stack(torch._foreach_norm(tensors))


def scale_tensors(tensors: list[Tensor], factors: Tensor) -> None:
    """Multiply every tensor by its factor, (tensors,), in place."""
    torch._foreach_mul_(tensors, list(factors.unbind()))


def gradients(named: Named) -> list[Tensor]:
    """The gradients of all parameters that have one."""
    return [p.grad for _, p in named if p.grad is not None]


class GlobalNorm(Value):
    """g min(1, norm/|g|) over all parameters (Pascanu et al. 2013)."""

    kind: Literal["global_norm"] = "global_norm"
    norm: Positive = Field(default=1.0, description="largest norm of the gradient of all parameters together")

    def apply(self, named: Named, output: str | None) -> Bounded:
        """One factor for all."""
        found = gradients(named)
        norm = tensor_norms(found).norm()
        factor = (self.norm / (norm + TINY)).clamp(max=1)
        torch._foreach_mul_(found, factor)
        return norm, norm * factor, factor < 1


class LayerNorm(Value):
    """The same for every tensor by itself."""

    kind: Literal["per_layer"] = "per_layer"
    norm: Positive = Field(default=1.0, description="largest norm of the gradient of each tensor")

    def apply(self, named: Named, output: str | None) -> Bounded:
        """One factor a tensor."""
        return _each_below(gradients(named), self.norm, TENSORS)


class ByValue(Value):
    """Every element between -limit and limit."""

    kind: Literal["value"] = "value"
    limit: Positive = Field(default=0.01, description="largest absolute value of each element of the gradient")

    def apply(self, named: Named, output: str | None) -> Bounded:
        found = gradients(named)
        before = tensor_norms(found).norm()
        ends = torch.stack([end for gradient in found for end in gradient.aminmax()])
        torch._foreach_clamp_min_(found, -self.limit)
        torch._foreach_clamp_max_(found, self.limit)
        return before, tensor_norms(found).norm(), ends.abs().max() > self.limit


class Groups(Value):
    """A norm for each group of parameters, by a regular expression found in their names; the first that fits decides.

    Parameters that fit none are left alone.
    """

    kind: Literal["groups"] = "groups"
    norms: dict[Text, Positive] = Field(
        min_length=1,
        max_length=1000,
        description="largest norm of the gradient of each group, by a regular expression: the first that is "
        "found in a parameter's name",
    )

    @field_validator("norms")
    @classmethod
    def _compiles(cls, norms: dict[str, float]) -> dict[str, float]:
        for pattern in norms:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"'{pattern}' is not a regular expression: {error}") from None
        return norms

    def split(self, named: Named) -> Mapping[str, list[nn.Parameter]]:
        """The parameters of every group. ConfigError for a group that nothing falls into."""
        parts: dict[str, list[nn.Parameter]] = {pattern: [] for pattern in self.norms}
        for name, parameter in named:
            fits = next((pattern for pattern in self.norms if re.search(pattern, name)), None)
            if fits is not None:
                parts[fits].append(parameter)
        for pattern, members in parts.items():
            if not members:
                known = ", ".join(dict.fromkeys(name.split(".")[0] for name, _ in named))
                raise ConfigError(
                    f"train.clip.norms: no parameter falls to '{pattern}'; names of this network begin with {known}."
                )
        return parts

    def apply(self, named: Named, output: str | None) -> Bounded:
        """One factor a group."""
        before, parts = tensor_norms(gradients(named)).norm(), self.split(named)
        norms = [nn.utils.clip_grad_norm_(members, self.norms[pattern]) for pattern, members in parts.items()]
        cut = torch.stack([norm > self.norms[pattern] for norm, pattern in zip(norms, parts, strict=True)]).any()
        return before, tensor_norms(gradients(named)).norm(), cut


class UnitNorm(Value):
    """The same as per_layer for every unit."""

    kind: Literal["per_unit"] = "per_unit"
    norm: Positive = Field(
        default=0.1, description="largest norm of the gradient of each unit, the weights of one output of a layer"
    )

    def apply(self, named: Named, output: str | None) -> Bounded:
        """One factor a unit."""
        return _each_below(gradients(named), self.norm, UNITS)


class Adaptive(Value):
    """AGC (Brock et al. 2021, eq. 3): every unit's gradient at most `ratio` times its weights' norm.

    That norm counts as 1e-3 at least, which keeps layers that begin at 0 alive. The network's output layer is left
    alone, where the network names it. Their ratio is 0.01 at batches of 4096; smaller batches want a larger one.
    """

    kind: Literal["agc"] = "agc"
    ratio: Positive = Field(
        default=0.01,
        description="largest norm of a unit's gradient over that of its weights (lambda of Brock et al. 2021)",
    )
    floor: Positive = Field(
        default=1e-3, description="least that the norm of a unit's weights counts as (epsilon of Brock et al. 2021)"
    )

    def apply(self, named: Named, output: str | None) -> Bounded:
        """One factor a unit."""
        return _below_weights(named, output, self.ratio, self.floor, UNITS)


class AdaptiveLayer(Value):
    """`agc` with the norms of whole tensors, in the manner of LARS: another algorithm."""

    kind: Literal["agc_per_layer"] = "agc_per_layer"
    ratio: Positive = Field(default=0.01, description="largest norm of a tensor's gradient over that of its weights")
    floor: Positive = Field(default=1e-3, description="least that the norm of a tensor's weights counts as")

    def apply(self, named: Named, output: str | None) -> Bounded:
        """One factor a tensor."""
        return _below_weights(named, output, self.ratio, self.floor, TENSORS)


class Normalize(Value):
    """The gradient's direction at a fixed norm, whatever its size."""

    kind: Literal["normalize"] = "normalize"
    norm: Positive = Field(default=1.0, description="norm that the gradient of all parameters together is given")

    def apply(self, named: Named, output: str | None) -> Bounded:
        found = gradients(named)
        norm = tensor_norms(found).norm()
        factor = self.norm / norm.clamp(min=TINY)
        torch._foreach_mul_(found, factor)
        return norm, norm * factor, factor != 1


def unit_norms(tensors: Sequence[Tensor]) -> Tensor:
    """The norms of all units, (units,): first those of the vectors, then those of every other tensor in turn."""
    vectors, others = _parted(tensors)
    each = [norm[None] for norm in (torch._foreach_norm(vectors) if vectors else ())]
    return torch.cat([*each, *(torch.linalg.vector_norm(other, dim=tuple(range(1, other.ndim))) for other in others)])


def scale_units(tensors: Sequence[Tensor], factors: Tensor) -> None:
    """Multiply every unit by its factor, (units,) as `unit_norms` orders them, in place."""
    vectors, others = _parted(tensors)
    parts = torch.split(factors, [1] * len(vectors) + [len(other) for other in others])
    shaped = [
        part.view(-1, *(1,) * (other.ndim - 1)) for part, other in zip(parts[len(vectors) :], others, strict=True)
    ]
    torch._foreach_mul_(vectors + others, [*parts[: len(vectors)], *shaped])


def _parted(tensors: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """Those that are one unit, and those of several."""
    return [t for t in tensors if t.ndim < 2], [t for t in tensors if t.ndim > 1]


@dataclass(frozen=True, slots=True)
class Division:
    """Tensors in parts: the norm of every part, and a factor for each, in place."""

    norms: Callable[[list[Tensor]], Tensor]
    scale: Callable[[list[Tensor], Tensor], None]


TENSORS, UNITS = Division(tensor_norms, scale_tensors), Division(unit_norms, scale_units)


def _each_below(found: list[Tensor], limit: float, by: Division) -> Bounded:
    """No part's norm above the limit."""
    norms = by.norms(found)
    factors = (limit / (norms + TINY)).clamp(max=1)
    by.scale(found, factors)
    return norms.norm(), (norms * factors).norm(), (factors < 1).any()


def _below_weights(named: Named, output: str | None, ratio: float, floor: float, by: Division) -> Bounded:
    """No part's norm above `ratio` times its weights', which count as `floor` at least; the output layer's stay."""
    weights, found, last = _apart(named, output)
    if not found:  # there is nothing but the output layer
        return last.norm(), last.norm(), torch.zeros_like(last[0], dtype=torch.bool)
    norms = by.norms(found)
    bound = ratio * by.norms(weights).clamp(min=floor)
    factors = (bound / norms.clamp(min=TINY * floor)).clamp(max=1)
    by.scale(found, factors)
    return _joined(norms, last), _joined(norms * factors, last), (factors < 1).any()


def _apart(named: Named, output: str | None) -> tuple[list[Tensor], list[Tensor], Tensor]:
    """(weights, gradients) of every layer but the one that gives the output, and the norms of that one's gradients."""
    kept = [pair for pair in named if output is None or not pair[0].startswith(f"{output}.")]
    last = gradients([pair for pair in named if output is not None and pair[0].startswith(f"{output}.")])
    found = gradients(kept)
    return [p.detach() for _, p in kept], found, tensor_norms(last) if last else found[0].new_zeros(1)


def _joined(norms: Tensor, last: Tensor) -> Tensor:
    """Over both, shape ()."""
    both: Tensor = torch.cat([norms, last]).norm()
    return both


def _from_number(value: Any) -> Any:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return {"kind": "global_norm", "norm": value} if number else value


AnyClip = Annotated[
    GlobalNorm | LayerNorm | ByValue | Groups | UnitNorm | Adaptive | AdaptiveLayer | Normalize,
    Field(discriminator="kind"),
    BeforeValidator(_from_number),
]


def remark(rule: Clip | None, network: nn.Module) -> str | None:
    """What a user should know of a rule on this network; None where nothing."""
    if isinstance(rule, Adaptive | AdaptiveLayer) and output_layer(network) is None:
        return (
            f"train.clip: {rule.kind} bounds every layer, as this network does not name the one that gives its output"
        )
    return None


@dataclass(frozen=True, slots=True)
class Clipped:
    """What clipping did to one step's gradient."""

    before: float  # norm
    after: float  # norm
    cut: bool  # whether anything was: the whole gradient, a layer, a unit, an element, as the rule has it
    cosine: float | None = None  # between the two, where it was watched
    largest: tuple[str, float] | None = None  # the tensor with the largest share of the raw squared norm, and the share


def clip(rule: Clip | None, network: nn.Module, watch: bool = False) -> Clipped:
    """Bound the gradients of a network in place. `watch` compares with a copy."""
    names, values = clip_on_device(rule, network, watch)
    return clipped(names, values.tolist())


def clip_on_device(rule: Clip | None, network: nn.Module, watch: bool = False) -> tuple[Sequence[str], Tensor]:
    """As `clip`, without waiting for the device: names and numbers, of which `clipped` makes what was done."""
    named = [(name, p) for name, p in network.named_parameters() if p.grad is not None]
    found = gradients(named)
    raw = [g.clone() for g in found] if watch else []
    if rule is None:
        norm = after = tensor_norms(found).norm()
        cut = torch.zeros_like(norm)
    else:
        norm, after, cut = rule.apply(named, output_layer(network))
    values = [norm, after, cut.to(norm)]
    if watch:
        products = torch.stack([(a * b).sum() for a, b in zip(raw, found, strict=True)])
        share, first = (tensor_norms(raw) / norm).square().max(0)
        values += [products.sum() / (norm * after).clamp(min=TINY**2), share, first.to(norm)]
    return [name for name, _ in named], torch.stack(values).double()


def clipped(names: Sequence[str], values: Sequence[float]) -> Clipped:
    """What clipping did, of the numbers that `clip_on_device` gives."""
    before, after, acted, *watched = values
    if not watched:
        return Clipped(before, after, acted > 0)
    cosine, share, first = watched
    return Clipped(before, after, acted > 0, cosine, (names[int(first)] if math.isfinite(share) else names[0], share))
