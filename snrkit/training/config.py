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
from snrkit.training.pairing import MinibatchOt
from snrkit.training.perturb import AnyPerturbation


class ResumeFrom(Value):
    """Weights to begin with, a fine-tune: those of another run, whose network must be the same, or of a model from
    elsewhere, which brings its network.
    """

    run: Place | None = Field(
        default=None,
        description="run directory of the training whose weights are taken; default: `model` is given in its place",
    )
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


FEW_STEPS = 1000  # of training, by which a network has hardly learned what images look like


class TrainConfig(Value):
    """How long, how fast and how safely. Everything is counted in images."""

    images: Images = Field(description="length of the training, in images shown, repeats counted")
    batch: Batch = Field(default=128, description="images of one step, over all processes")
    slice: Batch = Field(default=16, description="images whose randomness is drawn together")
    accumulate: Batch = Field(
        default=1, description="parts of a batch, one after the other, which takes less memory for the same step"
    )
    lr: float = Field(default=1e-3, gt=0, description="learning rate after the warmup and before the decay")
    warmup: Seen = Field(default=10_000, description="images over which the learning rate rises evenly from 0; 0: none")
    decay: Literal["constant", "cosine", "linear", "rsqrt"] = Field(
        default="constant",
        description="how the learning rate falls: cosine and linear to 0 at the end, rsqrt as "
        "sqrt(decay_from/images seen)",
    )
    decay_from: Seen = Field(default=0, description="images at which the decay begins; for rsqrt also its scale")
    optimizer: Literal["adamw", "adam", "sgd"] = Field(
        default="adamw", description="rule by which gradients move the weights"
    )
    adam_betas: tuple[float, float] = Field(
        default=(0.9, 0.99),
        description="decay rates, a step, of the averages of gradient and squared gradient, of adamw and adam",
    )
    momentum: float = Field(
        default=0.9, ge=0, lt=1, description="share of the last step's move that stays in the next, of sgd"
    )
    weight_decay: float = Field(
        default=0.0,
        ge=0,
        description="strength with which weights are drawn to 0: decoupled with adamw, in the gradient with the others",
    )
    clip: AnyClip | None = Field(
        default=GlobalNorm(),
        description="how gradients are bounded: a number is the largest global norm; null: they are not",
    )
    label_dropout: float = Field(
        default=0.0, ge=0, lt=1, description="share of images whose label is not told, as guidance by labels needs"
    )
    noise_dropout: float = Field(
        default=0.0, ge=0, lt=1, description="share of images whose level is not told, as noise awareness needs"
    )
    augment: EdmAugment | None = Field(
        default=None,
        description="random transforms of the images, of which the network is told (network.augment); default: none",
    )
    perturb: AnyPerturbation | None = Field(
        default=None,
        description="training pairs that are wrong on purpose, as states are while sampling; default: none",
    )
    pairing: MinibatchOt | None = Field(
        default=None,
        description="which noise an image is mixed with: minibatch_ot exchanges noise within each `slice` images; "
        "default: independent noise",
    )
    stable_target: bool = Field(
        default=False,
        description="ask for the mean of the images that a state could be of, among each `slice` images, instead of "
        "for its own (Xu et al. 2023)",
    )
    importance: Importance | None = Field(
        default=None, description="learn where to look, while the objective stays; default: do not"
    )
    balance: Balance | None = Field(
        default=None, description="weigh levels by what is learned of their loss; default: do not"
    )
    uncertainty: Uncertainty | None = Field(
        default=None, description="EDM2's learned uncertainty of every level; default: none"
    )
    resume_from: ResumeFrom | None = Field(
        default=None, description="weights to begin with, for a fine-tune; default: new ones, drawn by the seed"
    )
    averages: tuple[AnyAveraging, ...] = Field(
        default=(HalfLife(),), max_length=100, description="averages of the weights that are kept beside them"
    )
    save_every: Images = Field(default=20_000, description="images between checkpoints")
    keep_last: Images = Field(default=2, description="number of newest checkpoints that are kept")
    keep_every: Images | None = Field(
        default=None, description="images between older checkpoints that are kept too; default: none of them"
    )
    snapshot_every: Images | None = Field(
        default=None,
        ge=1,
        description="images between snapshots of weights and averages alone, for `snrkit average`; default: none "
        "are kept",
    )
    log_every: Images = Field(default=2_000, description="images between lines of the log")
    holdout_every: Images = Field(default=20_000, description="images between losses on held-out images")
    holdout_bins: int = Field(
        default=10,
        ge=1,
        le=10_000,
        description="number of bins of logsnr, with equally many images, of the held-out loss",
    )

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

    @property
    def remarks(self) -> list[str]:
        """What is allowed and seldom meant: a warmup without an end, too short a training."""
        found = []
        if self.warmup > self.images / 2:
            found.append(
                f"train.warmup: the learning rate rises over {self.warmup:,} of {self.images:,} images; shorten the "
                "warmup with the training"
            )
        return [*found, *self.cautions(self.images)]

    def cautions(self, images: int) -> list[str]:
        """What to know before what is measured of a network that was trained so, on so many images, is believed."""
        steps, found = images // self.batch, []
        if steps < FEW_STEPS and self.resume_from is None:
            found.append(
                f"{steps:,} steps of training are a trial of the commands: a network has hardly learned by then, and "
                "what is found of it holds for no other"
            )
        if self.stable_target:
            found.append(
                "train.stable_target: hold-out losses, and gradients that analyze shows, are of images themselves and "
                "not of the means that were asked for"
            )
        if self.pairing is not None:
            found.append(
                f"train.pairing: {self.pairing.kind} mixed images with noise that depends on them, while hold-out "
                "losses and the states that shifts are measured beside have independent noise"
            )
        return found

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
