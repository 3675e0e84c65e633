"""Modifiers of a sampler, one idea per file, each acting through one hook of snrkit.step.

They are written as increments of what they receive, so that a neutral value changes no bit.
"""

from typing import Annotated

from pydantic import Field

from snrkit.corrections.dcw import Dcw
from snrkit.corrections.epsilon_scaling import EpsilonScaling
from snrkit.corrections.guidance import ClassifierFreeGuidance

AnyCorrection = Annotated[EpsilonScaling | Dcw | ClassifierFreeGuidance, Field(discriminator="kind")]

__all__ = ["AnyCorrection", "ClassifierFreeGuidance", "Dcw", "EpsilonScaling"]
