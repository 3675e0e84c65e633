"""How long, how fast and how safely a network is trained: `train` in an experiment."""

from pathlib import Path
from typing import Literal

import torch
from pydantic import Field, model_validator

from snrkit.base.value import Batch, Images, Place, Seen, Text, Value
from snrkit.checkpoints.models import AnyForeign
from snrkit.data.augment import EdmAugment
from snrkit.training.adaptive import Balance, Importance, Uncertainty
from snrkit.training.clipping import AnyClip, GlobalNorm
from snrkit.training.ema import AnyAveraging, HalfLife
from snrkit.training.perturb import AnyPerturbation


class ResumeFrom(Value):
    """Weights to begin with, a fine-tune: those of another run, whose network must be the same, or of a model from
    elsewhere, which brings its network.
    """

    run: Place | None = None
    model: AnyForeign | None = Field(
        default=None, description="in place of `run`; brings process, target, precondition and network"
    )
    checkpoint: Seen | None = Field(default=None, description="images seen; default: the newest")
    average: Text | None = Field(
        default=None, description="the name of an average, or network; default: the longest average"
    )

    @model_validator(mode="after")
    def _of_one(self) -> "ResumeFrom":
        if (self.run is None) == (self.model is None):
            raise ValueError("it begins with the weights of one place; give run, or model")
        unused = [name for name in ("checkpoint", "average") if getattr(self, name) is not None]
        if self.model is not None and unused:
            raise ValueError(f"{unused[0]} has no effect on a model from elsewhere; drop it")
        return self

    @property
    def place(self) -> Path:
        """Where the weights lie."""
        place = self.run if self.model is None else self.model.path
        assert place is not None
        return place


class TrainConfig(Value):
    """How long, how fast and how safely. Everything is counted in images."""

    images: Images
    batch: Batch = 128
    slice: Batch = Field(default=16, description="images whose randomness is drawn together")
    accumulate: Batch = 1
    lr: float = Field(default=1e-3, gt=0)
    warmup: Seen = 10_000
    decay: Literal["constant", "cosine", "linear", "rsqrt"] = "constant"
    decay_from: Seen = Field(default=0, description="images at which the decay begins; for rsqrt also its scale")
    optimizer: Literal["adamw", "adam", "sgd"] = "adamw"
    adam_betas: tuple[float, float] = Field(default=(0.9, 0.99), description="of adamw and adam")
    momentum: float = Field(default=0.9, ge=0, lt=1, description="of sgd")
    weight_decay: float = Field(
        default=0.0, ge=0, description="decoupled with adamw, added to the gradient with the others"
    )
    clip: AnyClip | None = Field(
        default=GlobalNorm(), description="a number is the largest global norm of the gradient"
    )
    label_dropout: float = Field(default=0.0, ge=0, lt=1)
    noise_dropout: float = Field(default=0.0, ge=0, lt=1)
    augment: EdmAugment | None = None
    perturb: AnyPerturbation | None = None
    importance: Importance | None = Field(default=None, description="learn where to look; the objective stays")
    balance: Balance | None = Field(default=None, description="weigh levels by what is learned of their loss")
    uncertainty: Uncertainty | None = Field(default=None, description="EDM2's learned uncertainty of every level")
    resume_from: ResumeFrom | None = None
    averages: tuple[AnyAveraging, ...] = Field(default=(HalfLife(),), max_length=100)
    save_every: Images = 20_000
    keep_last: Images = 2
    keep_every: Images | None = None
    snapshot_every: Images | None = Field(
        default=None, ge=1, description="keep the weights and averages alone, for `average`"
    )
    log_every: Images = 2_000
    holdout_every: Images = 20_000
    holdout_bins: int = Field(default=10, ge=1, le=10_000)

    @model_validator(mode="after")
    def _acts(self) -> "TrainConfig":
        faults = []
        if not all(0 <= beta < 1 for beta in self.adam_betas):
            faults.append(f"adam_betas {self.adam_betas} must lie in [0, 1)")
        if self.decay == "rsqrt" and not self.decay_from:
            faults.append("decay rsqrt needs decay_from above 0, the images at which it begins")
        if self.decay == "constant" and self.decay_from:
            faults.append("decay_from has no effect with decay constant; drop it or choose a decay")
        unused = {"sgd": "adam_betas"}.get(self.optimizer, "momentum")
        if unused in self.model_fields_set and getattr(self, unused) != type(self).model_fields[unused].default:
            faults.append(f"{unused} has no effect with optimizer {self.optimizer}; drop it")
        if faults:
            raise ValueError("\n".join(faults))
        return self

    def lr_at(self, images: int) -> float:
        """The learning rate of the step that starts after `images` images."""
        warm = min(1.0, (images + self.batch) / self.warmup) if self.warmup else 1.0
        past = max(0, images - self.decay_from)
        left = max(0.0, 1 - past / max(1, self.images - self.decay_from))
        if self.decay == "cosine":
            shape = float((1 - torch.cos(torch.tensor(left * torch.pi, dtype=torch.float64))) / 2)
        elif self.decay == "linear":
            shape = left
        elif self.decay == "rsqrt":
            shape = max(images / max(1, self.decay_from), 1.0) ** -0.5
        else:
            shape = 1.0
        return self.lr * warm * shape
