"""Networks of diffusers, rebuilt from their configuration alone. Needs the extra `diffusers`."""

import inspect
from collections.abc import Mapping
from types import ModuleType
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from snrkit.base.errors import ConfigError, reason_of
from snrkit.base.transfer import send
from snrkit.base.value import Classes, Label, Text, Value
from snrkit.diffusion.prediction import Cond

LARGEST_NUMBER, MOST_ENTRIES, MOST_LAYERS = 2**24, 32, 200  # in a configuration
LAYERS = ("layers_per_block", "num_layers", "num_single_layers")

Whole = Annotated[int, Field(ge=-LARGEST_NUMBER, le=LARGEST_NUMBER)]
Real = Annotated[float, Field(ge=-LARGEST_NUMBER, le=LARGEST_NUMBER)]
Plain = bool | Whole | Real | Text | None
Setting = Plain | Annotated[tuple[Plain, ...], Field(max_length=MOST_ENTRIES)]


def diffusers_package() -> ModuleType:
    """The package; ConfigError says how to install it."""
    try:
        import diffusers
    except ImportError:
        raise ConfigError("the package diffusers is not installed; pip install 'snrkit[diffusers]'.") from None
    return diffusers


class DiffusersNetwork(Value):
    """A network of diffusers: its class, and the arguments that its configuration gives to that class."""

    kind: Literal["diffusers"] = "diffusers"
    name: Literal["UNet2DModel", "DiTTransformer2DModel"] = Field(description="its class in diffusers")
    config: Annotated[dict[Text, Setting], Field(max_length=100)] = Field(
        description="arguments that the class is made with, as its config.json has them"
    )
    classes: Classes = Field(default=0, description="number of labels, without one that means none")
    null_label: Label | None = Field(default=None, description="the label that means none, where there is one")

    @property
    def untold(self) -> bool:
        """Whether it can be asked without the level: a UNet2DModel of Fourier features divides its output by it."""
        return self.config.get("time_embedding_type") != "fourier"

    @property
    def stochastic(self) -> bool:
        """By its dropout."""
        return self.config.get("dropout", 0.0) != 0

    def make(self, shape: tuple[int, int, int], outputs: int | None = None) -> nn.Module:
        """The network for states of `shape`. ValueError where the configuration describes none for them."""
        known = arguments_of(self.name)
        if unknown := sorted(self.config.keys() - known):
            raise ValueError(f"a {self.name} of the installed diffusers has no {unknown[0]}")
        deep = [n for key in LAYERS if isinstance(n := self.config.get(key), int)]
        wide = [len(each) for each in self.config.values() if isinstance(each, tuple)]
        if max(deep, default=1) * max(wide, default=1) > MOST_LAYERS:
            raise ValueError(f"a {self.name} of more than {MOST_LAYERS} layers is none that anybody trained")
        self._check_labels()
        given = {key: list(value) if isinstance(value, tuple) else value for key, value in self.config.items()}
        try:
            made: nn.Module = getattr(diffusers_package(), self.name)(**given)
        except (TypeError, ValueError, RuntimeError, AttributeError, ArithmeticError, LookupError) as error:
            raise ValueError(f"no {self.name} has this config ({reason_of(error)})") from None
        if (channels := made.config.in_channels) != shape[0]:  # type: ignore[union-attr]
            raise ValueError(f"its config has {channels} in_channels, for states of {shape[0]}")
        return DiffusersModule(self, made)

    def _check_labels(self) -> None:
        """ValueError where labels are others than the configuration's."""
        if self.name == "DiTTransformer2DModel":
            rows = self.config.get("num_embeds_ada_norm", self.classes)
            fits = rows == self.classes and self.null_label is not None and self.null_label <= self.classes
        else:
            rows = self.config.get("num_class_embeds") or 0
            fits = rows == self.classes + (self.null_label is not None) and not self.config.get("class_embed_type")
            fits = fits and self.null_label in (None, self.classes)
        if not fits:
            raise ValueError(f"its config has {rows} labels, which are not its classes and null_label")


def arguments_of(name: str) -> frozenset[str]:
    """What the class of diffusers that is called so can be made with."""
    return frozenset(inspect.signature(getattr(diffusers_package(), name).__init__).parameters) - {"self"}


def plain_config(name: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """The entries of a folder's configuration that the class takes."""
    known = arguments_of(name)
    return {key: value for key, value in config.items() if key in known}


class DiffusersModule(nn.Module):
    """A network of diffusers called as snrkit's are, at its own time. Labels are dropped by `cond` alone."""

    def __init__(self, value: DiffusersNetwork, inner: Any) -> None:
        super().__init__()
        self.value, self.inner = value, inner
        blocks = [f"transformer_blocks.{k}.norm1.emb" for k in range(len(getattr(inner, "transformer_blocks", ())))]
        for name in blocks:  # which in training would drop one label in ten by themselves, each block others
            inner.get_submodule(name).class_embedder.dropout_prob = 0.0
        embeds = [f"{name}.timestep_embedder" for name in blocks] or ["time_embedding"]
        widths = {f"inner.{name}": int(inner.get_submodule(name).linear_2.out_features) for name in embeds}
        self.time_embeddings = widths if value.untold else {}
        rowless = value.classes > 0 and value.null_label is None
        self.label_embeddings = ("inner.class_embedding",) if rowless else ()
        self.output = "inner.proj_out_2" if blocks else "inner.conv_out"

    def forward(self, x: Tensor, time: Tensor, cond: Cond | None = None) -> Tensor:
        """(B, C, H, W), time (B,) -> (B, outputs, H, W)."""
        told: dict[str, Tensor] = {}
        if self.value.classes:
            labels = torch.full((len(x),), -1) if cond is None or cond.labels is None else cond.labels
            if self.value.null_label is not None:
                labels = torch.where(labels < 0, self.value.null_label, labels)
            told["class_labels"] = send(labels, x.device)
        out: Tensor = self.inner(x, time, **told, return_dict=False)[0]
        return out
