"""The published files of improved-diffusion and guided-diffusion (ADM): torch files of weights, and flags.

A file says nothing of how it was trained. The flags are those of the repositories' own commands, under the same names,
as they are written there ("32,16,8"), and with guided-diffusion's defaults. One default differs between the two, and is
asked for where it matters: `rescale_timesteps` is true where a command of improved-diffusion leaves it out, and false
in guided-diffusion. Flags of training, and of what its own samplers do, are taken and change nothing.
"""

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator
from torch import nn

from snrkit.base.errors import ConfigError, SnrkitError, ValueFaultError
from snrkit.base.value import LONGEST_TABLE, WIDEST, Place, Seed, Side, Text, Value, Width
from snrkit.checkpoints.foreign import LEARNED, Autoencoder, Described, with_weights
from snrkit.checkpoints.torch_files import weights_in
from snrkit.diffusion.betas import LinearBetas, SquaredCosBetas
from snrkit.diffusion.denoiser import NoPrecondition
from snrkit.diffusion.prediction import X0, Eps
from snrkit.diffusion.process import Ddpm
from snrkit.networks.adapted import Adapted, LinearClock
from snrkit.networks.adm import AdmUNet
from snrkit.networks.foreign import Foreign

MULTIPLIERS: dict[int, tuple[float, ...]] = {
    512: (0.5, 1, 1, 2, 2, 4, 4),
    256: (1, 1, 2, 2, 4, 4),
    128: (1, 1, 2, 3, 4),
    64: (1, 2, 3, 4),
    32: (1, 2, 2, 2),
}
IMAGE_CHANNELS = 3
CLIPPED = "its own samplers limit x0, as the correction {kind: clip_x0} does"


class AdmModel(Value):
    """A `.pt` of improved-diffusion or guided-diffusion with the flags that it was trained with."""

    kind: Literal["adm"] = "adm"
    path: Place = Field(description="`.pt` file of the weights")
    image_size: int = Field(default=64, ge=4, le=2**12, description="side of its square images, pixels")
    num_channels: int = Field(
        default=128, ge=32, le=WIDEST, description="channels that each of channel_mult multiplies"
    )
    num_res_blocks: int = Field(
        default=2, ge=1, le=16, description="residual blocks per depth on the way down, one more on the way up"
    )
    num_heads: Width = Field(default=4, description="attention heads of each attention layer")
    num_head_channels: Width | Literal[-1] = Field(
        default=-1,
        description="channels of one attention head, which take the place of num_heads; -1: num_heads decides",
    )
    attention_resolutions: tuple[Side, ...] = Field(
        default=(16, 8), max_length=12, description="sides of the feature maps that have attention, pixels"
    )
    channel_mult: tuple[float, ...] | None = Field(
        default=None,
        max_length=12,
        description="channels of each depth over num_channels; default: as published for image_size",
    )
    class_cond: bool = Field(
        default=False, description="it was trained with labels, and its file holds their embedding"
    )
    use_scale_shift_norm: bool = Field(
        default=True,
        description="the embedding scales and shifts normalised features; else it is added before they are normalised",
    )
    resblock_updown: bool = Field(default=False, description="sides change in residual blocks; else in convolutions")
    use_new_attention_order: bool = Field(
        default=False, description="queries of all heads, then keys, then values; else head by head"
    )
    learn_sigma: bool = Field(
        default=False, description="half of its output is a learned variance, for ancestral steps of variance learned"
    )
    diffusion_steps: int = Field(
        default=1000, gt=20, le=LONGEST_TABLE, description="levels of the table that it was trained on"
    )
    noise_schedule: Literal["linear", "cosine"] = Field(
        default="linear", description="betas of its table: linear, scaled to diffusion_steps, or of a squared cosine"
    )
    predict_xstart: bool = Field(default=False, description="it predicts x0; else eps")
    rescale_timesteps: bool | None = Field(
        default=None,
        description="it is told the table's index times 1000/diffusion_steps; needed, unless diffusion_steps is 1000",
    )
    num_heads_upsample: Width | Literal[-1] = Field(
        default=-1, description="attention heads on the way up, of which only num_heads can be read; -1: as num_heads"
    )
    timestep_respacing: Text | Seed = Field(
        default="", description="empty, or as diffusion_steps: a sampler's grid says which levels are visited"
    )
    dropout: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="probability that a feature within a residual block is dropped, where it is trained on",
    )
    use_checkpoint: bool = Field(
        default=False, description="flag of its training, of gradients by recomputing; it changes nothing here"
    )
    use_fp16: bool = Field(
        default=False,
        description="flag of its training, of half precision; it changes nothing here: see compute.precision",
    )
    use_kl: bool = Field(
        default=False, description="flag of its training, of the loss by the variational bound; it changes nothing here"
    )
    rescale_learned_sigmas: bool = Field(
        default=False, description="flag of its training, of a rescaled loss of the variance; it changes nothing here"
    )
    sigma_small: bool = Field(
        default=False, description="flag of its own samplers, of the smaller fixed variance; it changes nothing here"
    )

    @field_validator("attention_resolutions", "channel_mult", mode="before")
    @classmethod
    def _written_out(cls, value: Any) -> Any:
        """As commands have it: numbers between commas, nothing for the default."""
        return (tuple(value.split(",")) if value else None) if isinstance(value, str) else value

    @model_validator(mode="after")
    def _as_trained(self) -> "AdmModel":
        if self.rescale_timesteps is None and self.diffusion_steps != 1000:
            raise ValueError(
                "rescale_timesteps: give it, which the file does not say and 1000 steps do not need: as in the command "
                "that trained it; where that leaves it out, true for improved-diffusion and false for guided-diffusion"
            )
        if self.num_heads_upsample not in (-1, self.num_heads):
            raise ValueError(f"num_heads_upsample {self.num_heads_upsample}: as many heads as num_heads can be read")
        if str(self.timestep_respacing) not in ("", str(self.diffusion_steps)):
            raise ValueError(
                f"timestep_respacing {self.timestep_respacing}: drop it, and give samplers a grid: {{kind: leading, "
                "steps: 25} visits what ddim25 names, {kind: uniform_time, steps: 250} what 250 does"
            )
        return self

    @model_validator(mode="after")
    def _known_size(self) -> "AdmModel":
        if self.channel_mult is None and self.image_size not in MULTIPLIERS:
            raise ValueError(f"image_size {self.image_size} has no published channel_mult; give it")
        return self

    def describe(self) -> Described:
        """By the flags; the number of labels is the file's."""
        scale = 1000 / self.diffusion_steps
        linear = LinearBetas(start=scale * 1e-4, end=scale * 0.02)
        betas = linear if self.noise_schedule == "linear" else SquaredCosBetas()
        process = Ddpm(betas=betas, steps=self.diffusion_steps)
        return Described(process, X0() if self.predict_xstart else Eps(), NoPrecondition(), self._network())

    def autoencoder(self) -> Autoencoder | None:
        """None: these models make images."""
        return None

    def load(self) -> nn.Module:
        """Our network with the file's weights."""
        value, weights = self.architecture(), weights_in(self.path, None)
        try:
            return with_weights(value, weights)
        except SnrkitError as error:
            raise ConfigError(f"model.path: {self.path} holds other weights than the flags say ({error}).") from None

    def architecture(self) -> Adapted:
        """By the flags, dropout included."""
        network = self._network()
        outputs = IMAGE_CHANNELS * (2 if self.learn_sigma else 1)
        clock = LinearClock(factor=1000 / self.diffusion_steps if self.rescale_timesteps else 1.0)
        return Adapted(shape=network.shape, inner=self._value(network.classes), outputs=outputs, clock=clock)

    def _network(self) -> Foreign:
        labels = weights_in(self.path, None).get("label_emb.weight")
        if (labels is not None) != self.class_cond:
            there = "no labels" if labels is None else "labels"
            flag = str(labels is not None).lower()
            raise ConfigError(f"model.class_cond: {self.path} has {there}; set class_cond: {flag}.")
        shape = (IMAGE_CHANNELS, self.image_size, self.image_size)
        classes = 0 if labels is None else labels.shape[0]
        notes = (*((LEARNED,) if self.learn_sigma else ()), CLIPPED)
        return Foreign(shape=shape, classes=classes, learned_variance=self.learn_sigma, notes=notes)

    def _value(self, classes: int) -> AdmUNet:
        try:
            return AdmUNet(
                channels=self.num_channels,
                multipliers=self.channel_mult or MULTIPLIERS[self.image_size],
                blocks=self.num_res_blocks,
                attention=self.attention_resolutions,
                heads=self.num_heads,
                dropout=self.dropout,
                head_channels=self.num_head_channels if self.num_head_channels > 0 else None,
                classes=classes,
                scale_shift=self.use_scale_shift_norm,
                resample_blocks=self.resblock_updown,
                new_order=self.use_new_attention_order,
            )
        except ValueFaultError as error:
            raise ConfigError(f"model: no network has these flags ({error.said}).") from None
