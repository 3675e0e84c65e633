"""The flow-matching transformers of diffusers that are told a text: those of SD3, FLUX and Sana.

Text encoders are large and are not run here: their embeddings are made beforehand and lie in a safetensors file, as
the pipelines' own encode_prompt gives them, P prompts behind each other:

    prompt_embeds (P, L, D)    pooled_prompt_embeds (P, D'): SD3, FLUX    prompt_attention_mask (P, L): Sana

and, where guidance is to drop the text, the same with `negative_` before it, one row each. Prompt k is label k, and
images have the prompts' numbers as labels; one prompt without a negative is told always and is no label.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from snrkit.base.errors import ConfigError
from snrkit.base.transfer import send
from snrkit.checkpoints.folders import regular
from snrkit.diffusion.prediction import Cond

NEGATIVE = "negative_"
Told = Mapping[str, Tensor]
Ask = Callable[[Any, Tensor, Tensor, Told, float], Tensor]


def ask_sd3(inner: Any, x: Tensor, time: Tensor, told: Told, guidance: float) -> Tensor:
    """SD3's transformer, which takes latents as they are."""
    out: Tensor = inner(
        hidden_states=x,
        timestep=time,
        encoder_hidden_states=told["prompt_embeds"],
        pooled_projections=told["pooled_prompt_embeds"],
        return_dict=False,
    )[0]
    return out


def ask_flux(inner: Any, x: Tensor, time: Tensor, told: Told, guidance: float) -> Tensor:
    """FLUX's, which takes latents by twos as tokens and its time in [0, 1]."""
    batch, channels, height, width = x.shape
    rows, columns = height // 2, width // 2
    tokens = (
        x.reshape(batch, channels, rows, 2, columns, 2).permute(0, 2, 4, 1, 3, 5).reshape(batch, rows * columns, -1)
    )
    place = send(torch.cartesian_prod(torch.arange(rows), torch.arange(columns)).to(x.dtype), x.device)
    ids = torch.cat([torch.zeros_like(place[:, :1]), place], dim=1)
    text = told["prompt_embeds"]
    out: Tensor = inner(
        hidden_states=tokens,
        timestep=time / 1000,
        encoder_hidden_states=text,
        pooled_projections=told["pooled_prompt_embeds"],
        img_ids=ids,
        txt_ids=ids.new_zeros(text.shape[1], 3),
        guidance=torch.full_like(time, guidance) if inner.config.guidance_embeds else None,
        return_dict=False,
    )[0]
    return out.reshape(batch, rows, columns, channels, 2, 2).permute(0, 3, 1, 4, 2, 5).reshape(x.shape)


def ask_sana(inner: Any, x: Tensor, time: Tensor, told: Told, guidance: float) -> Tensor:
    """Sana's, which is told which tokens of the text there are."""
    out: Tensor = inner(
        x,
        encoder_hidden_states=told["prompt_embeds"],
        encoder_attention_mask=told["prompt_attention_mask"],
        timestep=time * inner.config.timestep_scale,
        return_dict=False,
    )[0]
    return out


@dataclass(frozen=True, slots=True)
class Kind:
    """How a transformer is asked, what of a text it is told, and how its input's channels count."""

    ask: Ask
    tells: Mapping[str, str | None]  # and the configuration's name of each one's width
    packed: int = 1  # latents in one token: its channels over theirs


JOINT = {"prompt_embeds": "joint_attention_dim", "pooled_prompt_embeds": "pooled_projection_dim"}
KINDS = {
    "SD3Transformer2DModel": Kind(ask_sd3, JOINT),
    "FluxTransformer2DModel": Kind(ask_flux, JOINT, packed=4),
    "SanaTransformer2DModel": Kind(ask_sana, {"prompt_embeds": "caption_channels", "prompt_attention_mask": None}),
}


@dataclass(frozen=True, slots=True)
class Texts:
    """What a file holds for a transformer: prompts by number and, perhaps, none."""

    path: Path
    count: int
    negative: bool

    @property
    def classes(self) -> int:
        """Labels: the prompts, where there is a choice."""
        return self.count if self.count > 1 or self.negative else 0


def find_texts(path: Path | None, name: str, config: Mapping[str, Any]) -> Texts:
    """Read the shapes in a file of embeddings. ConfigError where it does not fit the transformer."""
    tells = KINDS[name].tells
    if path is None:
        raise ConfigError(f"model.prompts: a {name} is told texts; give a safetensors file with {' and '.join(tells)}.")
    regular(path, "model.prompts")
    try:
        with safe_open(path, "pt") as file:
            shapes = {key: file.get_slice(key).get_shape() for key in file.keys()}  # noqa: SIM118 - no mapping
    except (OSError, SafetensorError):
        raise ConfigError(f"model.prompts: {path} is no safetensors file.") from None
    counts = {shapes[key][0] for key in tells if shapes.get(key)}
    if any(key not in shapes for key in tells) or len(counts) != 1:
        raise ConfigError(f"model.prompts: {path} does not hold {' and '.join(tells)} of equally many prompts.")
    for key, width in tells.items():
        if width is not None and width in config and shapes[key][-1] != config[width]:
            text = f"{key} of {path} is {shapes[key][-1]} wide, and the model takes {config[width]}"
            raise ConfigError(f"model.prompts: {text}.")
    negative = all(shapes.get(NEGATIVE + key, [])[1:] == shapes[key][1:] for key in tells)
    return Texts(path, counts.pop(), negative)


class Texted(nn.Module):
    """A transformer with its texts under snrkit's call."""

    def __init__(self, inner: nn.Module, name: str, texts: Texts, factor: float, guidance: float) -> None:
        super().__init__()
        self.inner, self.kind, self.texts = inner, KINDS[name], texts
        self.factor, self.guidance = factor, guidance
        with safe_open(texts.path, "pt") as file:
            for key in self.kind.tells:
                rows = [file.get_tensor(key)]
                if texts.negative:
                    rows.append(file.get_tensor(NEGATIVE + key)[:1])
                whole = torch.cat(rows)
                self.register_buffer(key, whole.float() if whole.is_floating_point() else whole, persistent=False)

    def forward(self, x: Tensor, time: Tensor, cond: Cond | None = None) -> Tensor:
        """(B, C, H, W), time (B,) -> the same."""
        none = torch.zeros(len(x), dtype=torch.int64) if not self.texts.classes else torch.full((len(x),), -1)
        labels = none if cond is None or cond.labels is None else cond.labels
        rows = send(torch.where(labels < 0, self.texts.count, labels), x.device)
        told = {key: self.get_buffer(key)[rows] for key in self.kind.tells}
        out = self.kind.ask(self.inner, x, time * self.factor, told, self.guidance)
        return out[:, : x.shape[1]]
