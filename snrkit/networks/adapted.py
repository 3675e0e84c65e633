"""Networks of other projects under snrkit's call, by plain values that rebuild them without the file they came in.

    F(x, time, cond) = sign * inner(x, clock(time), cond)[:, :C]

`clock` makes the network's own time of snrkit's; channels of its output beyond the states' C, a learned variance, are
left out. To be trained with dropouts of level and label, a network needs something to be told in their place. What it
has not itself is put round the modules that embed them (`add_nulls`): a learned row, taken where the time is NaN and
where the label is -1, and nowhere else, so that all other answers stay as they were, bit for bit.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from snrkit.base.errors import reason_of
from snrkit.base.value import Side, Value, Width
from snrkit.diffusion.prediction import Attends, Cond
from snrkit.networks.adm import AdmUNet
from snrkit.networks.config import Conditioning
from snrkit.networks.dit import Dit, DitModule
from snrkit.networks.edm import DhariwalUNet, SongUNet
from snrkit.networks.edm2 import Edm2UNet
from snrkit.networks.embed import NullLabel, NullTime
from snrkit.networks.of_diffusers import DiffusersNetwork

AnyInner = Annotated[Dit | AdmUNet | SongUNet | DhariwalUNet | Edm2UNet | DiffusersNetwork, Field(discriminator="kind")]


class LinearClock(Value):
    """factor * time + offset."""

    kind: Literal["linear"] = "linear"
    factor: float = Field(default=1.0, description="what the process's time is multiplied by")
    offset: float = Field(default=0.0, description="what is added to the time after the factor")

    def __call__(self, time: Tensor) -> Tensor:
        """(B,) -> (B,)."""
        return time * self.factor + self.offset


class VpClock(Value):
    """(M - 1) t with sigma(t)^2 + 1 = exp(beta_d t^2/2 + beta_min t), of the time ln(sigma)/4.

    `steepness` is beta_d, `least` beta_min, `steps` M (Karras et al. 2022, table 1).
    """

    kind: Literal["vp_sde"] = "vp_sde"
    steepness: float = Field(gt=0, description="beta_d of the VP SDE (Karras et al. 2022, table 1)")
    least: float = Field(description="beta_min of the VP SDE (Karras et al. 2022, table 1)")
    steps: float = Field(description="M of Karras et al. 2022, table 1: the network's time runs from 0 to M - 1")

    def __call__(self, time: Tensor) -> Tensor:
        """(B,) -> (B,)."""
        log = nn.functional.softplus(8 * time.double(), threshold=40)  # ln(1 + sigma^2)
        t = ((self.least**2 + 2 * self.steepness * log).sqrt() - self.least) / self.steepness
        return ((self.steps - 1) * t).float()


AnyClock = Annotated[LinearClock | VpClock, Field(discriminator="kind")]


class Adapted(Value):
    """A network of another project, as `train.resume_from.model` finds it in a file."""

    kind: Literal["adapted"] = "adapted"
    shape: tuple[Side, Side, Side] = Field(description="(C, H, W) of its states")
    inner: AnyInner = Field(description="the other project's network, asked at its own time")
    outputs: Width | None = Field(
        default=None,
        description="channels of its output, of which those beyond the states' are left out; default: those of "
        "its states",
    )
    clock: AnyClock = Field(default=LinearClock(), description="the network's own time as a function of the process's")
    sign: Literal[1, -1] = Field(
        default=1, description="factor of its output: -1 where it predicts the negative of the target"
    )

    @property
    def conditioning(self) -> Conditioning:
        """With the nulls that it is given. Of EDM's augmentation it is always told that there is none."""
        if isinstance(self.inner, Dit):
            return self.inner.conditioning
        untold = self.inner.untold if isinstance(self.inner, DiffusersNetwork) else True
        return Conditioning(self.inner.classes, unlabelled=True, untold=untold)

    @property
    def blockwise(self) -> bool:
        return isinstance(self.inner, Dit)

    @property
    def stochastic(self) -> bool:
        return self.inner.stochastic if isinstance(self.inner, Dit | DiffusersNetwork) else self.inner.dropout > 0

    def make(self, shape: tuple[int, int, int]) -> nn.Module:
        """The network with its nulls; ValueError for any `shape` but its own."""
        if shape != self.shape:
            ours, theirs = ("x".join(map(str, each)) for each in (shape, self.shape))
            raise ValueError(f"images are {ours}, and it takes {theirs}; give it images of its own shape")
        if self.outputs is not None and self.outputs < self.shape[0]:
            raise ValueError(f"{self.outputs} outputs are too few for states of {self.shape[0]} channels; drop outputs")
        try:
            inner = self.inner.make(self.shape, self.outputs)
        except (RuntimeError, ArithmeticError, ValueError) as error:  # of sizes that no layer has, too
            raise ValueError(f"{reason_of(error)}; describe the network as its weights were trained") from None
        network = AdaptedModule(self, inner)
        add_nulls(network)
        return network


class AdaptedModule(nn.Module):
    """The network that an `Adapted` describes; without nulls until `add_nulls` puts them in."""

    def __init__(self, value: Adapted, inner: nn.Module) -> None:
        super().__init__()
        self.value, self.inner, self.with_nulls = value, inner, False
        self.tells_spread = False  # whether a learned variance stays behind the answer, as a denoiser reads it
        self.output = f"inner.{inner.output}"
        if isinstance(inner, DitModule):  # a file has positions of its own, which checkpoints of it are to keep
            inner.register_buffer("pos_embed", inner.pos_embed)

    @property
    def attends(self) -> bool:
        """Whether the inner network heeds `Cond.alone`."""
        return isinstance(self.inner, Attends) and self.inner.attends

    def forward(self, x: Tensor, time: Tensor, cond: Cond | None = None) -> Tensor:
        """(B, C, H, W), time (B,) -> the same, or (B, 2C, H, W) with a learned variance that it tells."""
        out: Tensor = self.inner(x, self.value.clock(time), self._told(x, cond or Cond()))
        found, channels = float(self.value.sign) * out[:, : self.value.shape[0]], self.value.shape[0]
        return torch.cat([found, out[:, channels : 2 * channels]], 1) if self.tells_spread else found

    def _told(self, x: Tensor, cond: Cond) -> Cond:
        """What the inner network takes: labels, -1 where there are none, and that nothing was augmented."""
        inner, labels, augment = self.value.inner, cond.labels, cond.augment
        if labels is None and inner.classes:
            labels = torch.full((len(x),), -1, device=x.device)
        if augment is None and isinstance(inner, SongUNet | DhariwalUNet) and inner.augment:
            augment = x.new_zeros(len(x), inner.augment)
        return replace(cond, labels=labels, augment=augment)


def add_nulls(network: AdaptedModule) -> None:
    """Put rows for a level and for a label that are not told round the modules that embed these, in place."""
    inner, network.with_nulls = network.inner, True
    for name, width in getattr(inner, "time_embeddings", {}).items():
        _replace(inner, name, NullTime(inner.get_submodule(name), width))
    for name in getattr(inner, "label_embeddings", ()):
        embed = inner.get_submodule(name)
        assert isinstance(embed, nn.Embedding)
        _replace(inner, name, NullLabel(embed))


def _replace(module: nn.Module, name: str, new: nn.Module) -> None:
    parent, _, last = name.rpartition(".")
    setattr(module.get_submodule(parent), last, new)


@torch.no_grad()
def start_untold(network: AdaptedModule, time: Tensor) -> None:
    """Have a network with nulls answer an untold level as it answers `time` (); all other answers stay."""
    x = next(network.parameters()).new_zeros(1, *network.value.shape)
    was_training = network.training
    network.eval()
    hooks = [embed.register_forward_hook(_copying(null)) for embed, null in _nulls(network)]
    network(x, time.to(x).expand(1))
    for hook in hooks:
        hook.remove()
    network.train(was_training)


def _nulls(network: AdaptedModule) -> Iterator[tuple[nn.Module, Tensor]]:
    """(what embeds the level, what stands for a level that is not told)."""
    if isinstance(network.inner, DitModule):
        yield network.inner.t_embedder, network.inner.extras.null_time
    yield from ((module.embed, module.null) for module in network.modules() if isinstance(module, NullTime))


def _copying(into: Tensor) -> Callable[[nn.Module, Any, Tensor], None]:
    """A hook that copies what a module answers to the first of a batch."""

    def copy(module: nn.Module, inputs: Any, output: Tensor) -> None:
        into.copy_(output[0])

    return copy


def without_nulls(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights of a network with nulls under the inner network's own names, and without the nulls."""
    kept = {name: tensor for name, tensor in weights.items() if not name.endswith(".null")}
    return {name.removeprefix("inner.").replace(".embed.", "."): tensor for name, tensor in kept.items()}
