"""Modifiers of a sampler, one idea per file, each acting through one hook of snrkit.sampling.step.

They are written as increments of what they receive, so that a neutral value changes no bit.
"""

from typing import Annotated

from pydantic import Field

from snrkit.sampling.corrections.apg import AdaptiveProjectedGuidance
from snrkit.sampling.corrections.cfg_zero_star import CfgZeroStar
from snrkit.sampling.corrections.clean_image import ClipX0, DynamicThreshold, X0Rescale
from snrkit.sampling.corrections.dcw import Dcw
from snrkit.sampling.corrections.epsilon_scaling import EpsilonScaling
from snrkit.sampling.corrections.fdg import FrequencyDecoupledGuidance
from snrkit.sampling.corrections.gain import Gain
from snrkit.sampling.corrections.guidance import (
    Autoguidance,
    ClassifierFreeGuidance,
    NoiseAwareness,
    NoiseAwarenessClassifier,
)
from snrkit.sampling.corrections.noise_level import NoiseLevelCorrection
from snrkit.sampling.corrections.perturbed_attention import PerturbedAttention
from snrkit.sampling.corrections.score_rescaling import ScoreRescaling
from snrkit.sampling.corrections.time_shift import TimeShift

AnyCorrection = Annotated[
    Dcw
    | EpsilonScaling
    | Gain
    | ScoreRescaling
    | TimeShift
    | NoiseLevelCorrection
    | ClassifierFreeGuidance
    | FrequencyDecoupledGuidance
    | AdaptiveProjectedGuidance
    | CfgZeroStar
    | NoiseAwareness
    | NoiseAwarenessClassifier
    | Autoguidance
    | PerturbedAttention
    | ClipX0
    | DynamicThreshold
    | X0Rescale,
    Field(discriminator="kind"),
]

__all__ = [
    "AdaptiveProjectedGuidance",
    "AnyCorrection",
    "Autoguidance",
    "CfgZeroStar",
    "ClassifierFreeGuidance",
    "ClipX0",
    "Dcw",
    "DynamicThreshold",
    "EpsilonScaling",
    "FrequencyDecoupledGuidance",
    "Gain",
    "NoiseAwareness",
    "NoiseAwarenessClassifier",
    "PerturbedAttention",
    "NoiseLevelCorrection",
    "ScoreRescaling",
    "TimeShift",
    "X0Rescale",
]
