"""The published files of DiT (Peebles & Xie 2023) and SiT (Ma et al. 2024): torch files of weights under DiT's names.

Both are one network; all but the number of heads follows from the shapes of the weights. DiT predicts eps on the linear
table of 1000 betas, beside a learned variance. SiT's line runs from noise at its time 0 to the image at 1, and predicts
x0 - eps: its time is 1 - t, and its output is taken with the other sign; a second half of it was never trained. Under
guidance the published samplers leave the fourth latent channel unguided, which is not done here.
"""

import math
from collections.abc import Mapping
from typing import Literal

from pydantic import Field
from torch import Tensor, nn

from snrkit.base.errors import ConfigError, SnrkitError, ValueFaultError
from snrkit.base.value import Place, Text, Value, Width
from snrkit.checkpoints.foreign import LEARNED, Autoencoder, Described, with_weights
from snrkit.checkpoints.torch_files import weights_in
from snrkit.diffusion.denoiser import NoPrecondition
from snrkit.diffusion.prediction import Eps, FlowVelocity
from snrkit.diffusion.process import Ddpm, Flow
from snrkit.networks.adapted import Adapted, LinearClock
from snrkit.networks.dit import Dit, DitModule
from snrkit.networks.foreign import Foreign

DEEPEST = 200  # blocks; published sizes have 28 at most
HEADS = {384: 6, 768: 12, 1024: 16, 1152: 16}  # by width, of the published sizes S, B, L and XL


class TransformerFile(Value):
    """What both say of their file."""

    path: Place = Field(description="`.pt` file of the weights")
    entry: Text | None = Field(
        default=None, description="where the weights are; default: ema, if there is one, or the whole"
    )
    heads: Width | None = Field(
        default=None, description="attention heads of each block; default: as the published size of this width has"
    )
    vae: Place | None = Field(default=None, description="folder of its autoencoder, as diffusers saves AutoencoderKL")

    def autoencoder(self) -> Autoencoder | None:
        """The one that is given."""
        return None if self.vae is None else Autoencoder(path=self.vae)


class DitModel(TransformerFile):
    """A `.pt` of DiT."""

    kind: Literal["dit"] = "dit"

    def describe(self) -> Described:
        """Read the shapes of the weights, which stay in the file."""
        network, doubled = _described(self)
        network = network.model_copy(update={"notes": (LEARNED,) if doubled else (), "learned_variance": doubled})
        return Described(Ddpm(), Eps(), NoPrecondition(), network)

    def load(self) -> nn.Module:
        """Our network with the file's weights."""
        return _opened(self, self.architecture())

    def architecture(self) -> Adapted:
        """By the shapes of the weights."""
        value, shape, outputs = _layout(self, weights_in(self.path, self.entry))
        return Adapted(shape=shape, inner=value, outputs=outputs)


class SitModel(TransformerFile):
    """A `.pt` of SiT, trained for the velocity on the linear path."""

    kind: Literal["sit"] = "sit"

    def describe(self) -> Described:
        """Read the shapes of the weights, which stay in the file."""
        return Described(Flow(), FlowVelocity(), NoPrecondition(), _described(self)[0])

    def load(self) -> nn.Module:
        """Our network with the file's weights."""
        return _opened(self, self.architecture())

    def architecture(self) -> Adapted:
        """By the shapes of the weights, with time and output turned."""
        value, shape, outputs = _layout(self, weights_in(self.path, self.entry))
        return Adapted(shape=shape, inner=value, outputs=outputs, clock=LinearClock(factor=-1, offset=1), sign=-1)


def _described(model: TransformerFile) -> tuple[Foreign, bool]:
    """(shape and labels, whether its output has twice the channels)."""
    value, shape, outputs = _layout(model, weights_in(model.path, model.entry))
    return Foreign(shape=shape, classes=value.classes, null_label=True, attends=True), outputs == 2 * shape[0]


def _opened(model: TransformerFile, value: Adapted) -> nn.Module:
    """The network, with the file's own positions."""
    weights = weights_in(model.path, model.entry)
    positions = weights["pos_embed"]
    rest = {name: tensor for name, tensor in weights.items() if name != "pos_embed"}
    try:
        network = with_weights(value, rest, unset=("extras.null_time",))
    except SnrkitError as error:
        raise ConfigError(f"model.path: {model.path} is no whole DiT or SiT ({error}).") from None
    assert isinstance(network.inner, DitModule)
    network.inner.pos_embed = positions.float().clone()
    return network


def _layout(model: TransformerFile, weights: Mapping[str, Tensor]) -> tuple[Dit, tuple[int, int, int], int]:
    """(the network, shape of its states, channels of its output), from the shapes of the weights."""
    try:
        dim, channels, patch, _ = weights["x_embedder.proj.weight"].shape
        side = math.isqrt(weights["pos_embed"].shape[1]) * patch
        outputs = weights["final_layer.linear.bias"].shape[0] // patch**2
        classes = weights["y_embedder.embedding_table.weight"].shape[0] - 1
        depth = len({name.split(".")[1] for name in weights if name.startswith("blocks.")})
        wide = weights["blocks.0.mlp.fc1.bias"].shape[0]
    except (KeyError, ValueError, IndexError):
        raise ConfigError(f"model.path: {model.path} does not hold the weights of a DiT or SiT.") from None
    if outputs < channels:
        raise ConfigError(f"model.path: {model.path} holds a DiT or SiT that answers less than a state.")
    if depth > DEEPEST:
        raise ConfigError(f"model.path: {model.path} holds a DiT or SiT of {depth} blocks, more than any.")
    heads = model.heads or HEADS.get(dim)
    if heads is None:
        raise ConfigError(f"model.heads: no published DiT is {dim} wide; say how many heads it has.")
    try:
        value = Dit(patch=patch, dim=dim, depth=depth, heads=heads, mlp_ratio=wide / dim, classes=classes)
    except (ValueFaultError, ZeroDivisionError):
        raise ConfigError(f"model.path: {model.path} holds a DiT or SiT of an impossible size.") from None
    return value, (channels, side, side), outputs
