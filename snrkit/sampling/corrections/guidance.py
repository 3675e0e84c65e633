"""Guidance: what the model says, plus weights times how it differs from models that know less.

    out = p + sum_k weight_k (p - p_k)

    kind               p_k                                    source
    cfg                without the label                      Ho & Salimans 2022; `guidance_scale` is 1 + weight
    noise_awareness    without the level (told = None)        Zhong et al. 2025, classifier-free form
    autoguidance       of other weights                       Karras et al. 2024
    perturbed_attention  with attention to oneself alone      Ahn et al. 2024

All are neutral at weight 0, where nothing further is asked. Guidances that stand next to each other in a list act on
the same p, so that cfg and noise awareness make u(c, t) + w_cfg (u(c, t) - u(0, t)) + w_nag (u(c, t) - u(c, 0)): that
they add and do not nest is snrkit's choice, as the source leaves it open. So are the interval of noise awareness and
what its weight applies to (x0 and eps, which mixes answers, not scores). A rescale is that of its own guidance alone.

Guidances of files of their own (fdg, apg, cfg_zero_star) put another contrast than p - p_k behind their weight.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from snrkit.base.errors import SnrkitError
from snrkit.base.value import Place, Seen, Text, Value
from snrkit.diffusion.denoiser import check_readable
from snrkit.diffusion.level import Level, broadcast
from snrkit.diffusion.prediction import SAME, X0, Alone, AnyTarget, Cond, Denoiser, Prediction, Same, rewrap, solve
from snrkit.diffusion.process import Process
from snrkit.sampling.step import (
    BeliefCorrection,
    Capabilities,
    LevelPosterior,
    NamedEstimator,
    NamedWeights,
    Position,
    Range,
    Sources,
)

CLOSE = 1e-9  # nats, within which two levels are the same


@dataclass(frozen=True, slots=True)
class Rescale:
    """Bring the spread of the guided answer `share` of the way back to that of p (Lin et al. 2024)."""

    share: float
    of: AnyTarget

    def apply(self, x: Tensor, level: Level, guided: Prediction, plain: Prediction) -> Prediction:
        """The guided prediction with the standard deviation of its target rescaled, image by image."""
        a, b = (broadcast(part, x) for part in self.of.direction(level))
        y, wanted = a * guided.x0 + b * guided.eps, a * plain.x0 + b * plain.eps
        dims = tuple(range(1, x.ndim))
        factor = wanted.std(dims, keepdim=True) / y.std(dims, keepdim=True)
        return solve(x, y + self.share * (factor - 1) * y, level, self.of)


Contrast = Callable[[Tensor, Level, Prediction, Prediction], Prediction]
"""What a weight of 1 adds to p, from the state x (B, *), its level, p and p_k. alpha x0 + sigma eps of it is 0."""


def difference(x: Tensor, level: Level, plain: Prediction, other: Prediction) -> Prediction:
    """p - p_k."""
    return Prediction(plain.x0 - other.x0, plain.eps - other.eps)


@dataclass(frozen=True, slots=True)
class Term:
    """One guidance within a step: `weight` () or (B,) of a contrast of p and p_k, where p_k knows less.

    `rescale` acts on p and what is added to it.
    """

    weight: Tensor
    weaker: Denoiser | None = None  # who says p_k; None: the guided model itself
    unlabelled: bool = False  # whether it is asked without the label
    untold: bool = False  # whether it is asked without the level
    alone: Alone | None = None  # attention layers in which its tokens look at themselves alone
    rescale: Rescale | None = None
    contrast: Contrast = difference

    def ask(self, base: Denoiser, x: Tensor, level: Level, told: Level | Same | None, cond: Cond | None) -> Prediction:
        """p_k. SnrkitError where there is no label to leave out."""
        asked = base if self.weaker is None else self.weaker
        known = without_label(cond) if self.unlabelled else cond
        if self.alone is not None:
            known = replace(Cond() if known is None else known, alone=self.alone)
        return asked(x, level, told=None if self.untold else told, cond=known)


@dataclass(frozen=True, slots=True)
class Guided:
    """A denoiser with guidances that all act on `base`."""

    base: Denoiser
    terms: Sequence[Term]

    @property
    def process(self) -> Process:
        return self.base.process

    def __call__(
        self, x: Tensor, level: Level, *, told: Level | Same | None = SAME, cond: Cond | None = None
    ) -> Prediction:
        """p + sum_k weight_k (p - p_k), or another contrast than p - p_k, at one evaluation more for every term."""
        plain = self.base(x, level, told=told, cond=cond)
        found = plain
        for term in self.terms:
            other, weight = term.ask(self.base, x, level, told, cond), broadcast(term.weight, x)
            push = term.contrast(x, level, plain, other)
            guided = replace(plain, x0=plain.x0 + weight * push.x0, eps=plain.eps + weight * push.eps)
            if term.rescale is not None:
                guided = replace(term.rescale.apply(x, level, guided, plain), spread=plain.spread)
            if found is not plain:  # a second guidance adds what it changes
                x0, eps = found.x0 + (guided.x0 - plain.x0), found.eps + (guided.eps - plain.eps)
                guided = replace(plain, x0=x0, eps=eps)
            found = guided
        return found


def guide(denoise: Denoiser, term: Term) -> Denoiser:
    """`denoise` with one more guidance on the same base."""
    if isinstance(denoise, Guided):
        return Guided(denoise.base, (*denoise.terms, term))
    return Guided(denoise, (term,))


class Guidance(Value):
    """What all guidances share: a weight, and where steps are guided, by the level they begin at.

    Between two logsnr, or between two t, which falls evenly from 1 to 0 over the steps of a grid: where every image
    has a grid of its own, and a logsnr means something else for each, t is the same for all.
    """

    weight: float = Field(
        default=0.0,
        description="w of p + w (p - p'), p the prediction and p' one that knows less, or of score + w grad ln "
        "q; 0 is neutral; for cfg guidance_scale - 1",
    )
    logsnr_min: float | None = Field(
        default=None, description="no guidance in steps that begin at noisier levels, nats"
    )
    logsnr_max: float | None = Field(
        default=None, description="no guidance in steps that begin at cleaner levels, nats"
    )
    t_min: float = Field(default=0.0, ge=0, le=1, description="no guidance in steps that begin nearer the clean end")
    t_max: float = Field(default=1.0, ge=0, le=1, description="no guidance in steps that begin nearer the noisy end")
    tunable: ClassVar[dict[str, Range]] = {"weight": Range(0.0, -0.5, 4.0, coarse=0.25, fine=0.05)}

    @property
    def everywhere(self) -> bool:
        """Whether every step is guided, whatever the grid."""
        return self.logsnr_min is None and self.logsnr_max is None and (self.t_min, self.t_max) == (0, 1)

    def phase(self, position: Position) -> int:
        """Which of its rules holds in this step; 0: it does nothing."""
        return int(weight_at(self, position) is not None)

    @model_validator(mode="after")
    def _ordered(self) -> "Guidance":
        if self.logsnr_min is not None and self.logsnr_max is not None and self.logsnr_min > self.logsnr_max:
            raise ValueError(f"logsnr_min {self.logsnr_min} must not be above logsnr_max {self.logsnr_max}")
        if self.t_min > self.t_max:
            raise ValueError(f"t_min {self.t_min} must not be above t_max {self.t_max}")
        return self


def weight_at(guidance: Guidance, position: Position) -> Tensor | None:
    """The weight in this step, shaped as the level; None where no image of the batch is guided."""
    if not guidance.t_min <= position.t <= guidance.t_max:
        return None
    logsnr = position.here.logsnr
    inside = torch.ones_like(logsnr, dtype=torch.bool)
    if guidance.logsnr_min is not None:
        inside &= logsnr >= guidance.logsnr_min
    if guidance.logsnr_max is not None:
        inside &= logsnr <= guidance.logsnr_max
    return guidance.weight * inside.to(torch.float64) if guidance.weight and bool(inside.any()) else None


@dataclass(frozen=True, slots=True)
class OfSteps:
    """Guidance in those steps of a sampler that it guides, on whatever grid the states are walked.

    Between two of the sampler's levels it is that of the sampler's step, which begins at the first of them.
    """

    value: Guidance
    correction: BeliefCorrection
    levels: tuple[Level, ...]  # the sampler's, of shape ()

    def wrap(self, denoise: Denoiser, position: Position) -> Denoiser:
        """The denoiser of the sampler's step in which this one begins."""
        here = float(position.here.logsnr) + CLOSE
        steps = [place for place, level in enumerate(self.levels[:-1]) if float(level.logsnr) <= here]
        return self.correction.wrap(denoise, self._step(steps[-1] if steps else 0))

    @property
    def jumps(self) -> tuple[Level, ...]:
        """The sampler's levels at which guidance sets in, ends or goes by another rule."""
        phases = [self.value.phase(self._step(place)) for place in range(len(self.levels) - 1)]
        changes = enumerate(pairwise(phases), start=1)
        return tuple(self.levels[place] for place, (before, after) in changes if before != after)

    def _step(self, place: int) -> Position:
        return Position(place, self.levels, *self.levels[place : place + 2])


def of_steps(value: Guidance, correction: BeliefCorrection, levels: Sequence[Level]) -> BeliefCorrection:
    """A guidance as it was opened, held to the steps of a sampler where it has an interval, and as it is elsewhere."""
    return correction if value.everywhere else OfSteps(value, correction, tuple(levels))


def without_label(cond: Cond | None) -> Cond:
    """The condition with no label. SnrkitError where there is none to leave out."""
    if cond is None or cond.labels is None:
        raise SnrkitError("guidance by labels needs a model with labels; this one is sampled without any")
    return replace(cond, labels=torch.full_like(cond.labels, -1))


class LabelGuidance(Guidance):
    """What guidances share that compare with the answer without a label: p_k = u."""

    @property
    def asks_bare(self) -> bool:
        """No: it asks the model itself."""
        return False

    def missing(self, model: Capabilities) -> str | None:
        """Labels, learned also without."""
        if model.labels and model.unlabelled:
            return None
        return "needs a network with classes trained with train.label_dropout above 0"


class ClassifierFreeGuidance(LabelGuidance):
    """Push the prediction away from that without a label (Ho & Salimans 2022); interval: Kynkaanniemi et al. 2024.

    `rescale` in [0, 1] brings the spread of `rescale_of` back to the unguided one (Lin et al. 2024).
    """

    kind: Literal["cfg"] = "cfg"
    rescale: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="how far the standard deviation of a guided answer goes back to the unguided one's, 1 all "
        "the way (phi of Lin et al. 2024)",
    )
    rescale_of: AnyTarget = Field(default=X0(), description="target whose standard deviation is rescaled")

    @model_validator(mode="after")
    def _rescales(self) -> "ClassifierFreeGuidance":
        if self.rescale == 0 and not isinstance(self.rescale_of, X0):
            raise ValueError("rescale_of has no effect while rescale is 0; give rescale, or drop it")
        return self

    def wrap(self, denoise: Denoiser, position: Position) -> Denoiser:
        """The guided denoiser; it needs a condition with labels."""
        weight = weight_at(self, position)
        if weight is None:
            return denoise
        if self.rescale:
            check_readable(position.here, self.rescale_of)
        rescale = Rescale(self.rescale, self.rescale_of) if self.rescale else None
        return guide(denoise, Term(weight, unlabelled=True, rescale=rescale))


class NoiseAwareness(Guidance):
    """Push the prediction away from that of the model which is not told the level (Zhong et al. 2025)."""

    kind: Literal["noise_awareness"] = "noise_awareness"

    @property
    def asks_bare(self) -> bool:
        """No: it asks the model itself."""
        return False

    def wrap(self, denoise: Denoiser, position: Position) -> Denoiser:
        weight = weight_at(self, position)
        return denoise if weight is None else guide(denoise, Term(weight, untold=True))

    def missing(self, model: Capabilities) -> str | None:
        """The branch without the level."""
        if model.untold:
            return None
        return (
            "needs a network trained with train.noise_dropout above 0; train one, or fine-tune this run or "
            "model with train.resume_from"
        )


class Autoguidance(Guidance):
    """Push the prediction away from that of a weaker model: another run, checkpoint or average (Karras et al. 2024).

    The weaker model is asked bare, so corrections that change the prediction come after this one in a list.
    """

    kind: Literal["autoguidance"] = "autoguidance"
    run: Place | None = Field(default=None, description="run directory; default: this run")
    checkpoint: Seen | None = Field(default=None, description="images seen; default: the newest")
    average: Text | None = Field(
        default=None, description="the name of an average, or network; default: as the sampler's own"
    )
    unlabelled: bool = Field(default=False, description="ask the weaker model without the label, which it may not know")

    @model_validator(mode="after")
    def _differs(self) -> "Autoguidance":
        if self.run is None and self.checkpoint is None and self.average is None:
            raise ValueError("name the weaker model by run, checkpoint or average; a model cannot guide itself")
        return self

    def open(self, sources: Sources, levels: Sequence[Level]) -> "OpenedAutoguidance":
        """The correction with its weaker model."""
        return OpenedAutoguidance(self, sources.denoiser(NamedWeights(self.run, self.checkpoint, self.average)))


@dataclass(frozen=True, slots=True)
class OpenedAutoguidance:
    """Autoguidance with the weaker model it names."""

    value: Autoguidance
    weaker: Denoiser

    @property
    def asks_bare(self) -> bool:
        """Yes: the weaker model."""
        return True

    def wrap(self, denoise: Denoiser, position: Position) -> Denoiser:
        weight = weight_at(self.value, position)
        if weight is None:
            return denoise
        return guide(denoise, Term(weight, weaker=self.weaker, unlabelled=self.value.unlabelled))


class NoiseAwarenessClassifier(Guidance):
    """Follow the gradient of an estimator's ln q(level | x) at the nominal level (Zhong et al. 2025, classifier form).

    score + weight * grad ln q: eps - weight sigma grad, x0 + weight sigma^2/alpha grad. The estimator is the run's own
    (snrkit fit-estimator). Undefined at alpha = 0: SnrkitError.
    """

    kind: Literal["noise_awareness_classifier"] = "noise_awareness_classifier"

    def open(self, sources: Sources, levels: Sequence[Level]) -> "OpenedNoiseAwarenessClassifier":
        """The correction with its estimator."""
        return OpenedNoiseAwarenessClassifier(self, sources.estimator(NamedEstimator()) if self.weight else None)


@dataclass(frozen=True, slots=True)
class OpenedNoiseAwarenessClassifier:
    """Classifier guidance with the estimator it needs."""

    value: NoiseAwarenessClassifier
    estimator: LevelPosterior | None

    def wrap(self, denoise: Denoiser, position: Position) -> Denoiser:
        weight = weight_at(self.value, position)
        if weight is None or self.estimator is None:
            return denoise
        if bool((position.here.alpha == 0).any()):
            raise SnrkitError("noise_awareness_classifier is undefined at alpha = 0; give it a logsnr_min")
        gradient = self.estimator.gradient

        def answer(x: Tensor, level: Level, told: Level | Same | None = SAME, cond: Cond | None = None) -> Prediction:
            p = denoise(x, level, told=told, cond=cond)
            push = broadcast(weight * level.sigma, x) * gradient(x, level.logsnr)
            return replace(p, x0=p.x0 + level.ratio(x) * push, eps=p.eps - push)

        return rewrap(denoise, answer)
