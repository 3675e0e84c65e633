"""Classifier-free guidance (Ho & Salimans 2022), out = c + weight * (c - u); `guidance_scale` is 1 + weight."""

from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from snrkit.errors import SnrkitError
from snrkit.level import Level
from snrkit.prediction import SAME, Cond, Denoiser, Prediction, Same, rewrap
from snrkit.step import Place
from snrkit.value import Value


class ClassifierFreeGuidance(Value):
    """Push the prediction away from that without a label, at one more evaluation a call; weight 0 is neutral."""

    kind: Literal["cfg"] = "cfg"
    weight: float = 0.0

    def wrap(self, denoise: Denoiser, place: Place) -> Denoiser:
        """The guided denoiser; it needs a condition with labels."""
        if self.weight == 0:
            return denoise

        def answer(x: Tensor, level: Level, told: Level | Same | None = SAME, cond: Cond | None = None) -> Prediction:
            if cond is None or cond.labels is None:
                raise SnrkitError("cfg needs a model with labels; this one is sampled without any")
            c = denoise(x, level, told=told, cond=cond)
            u = denoise(x, level, told=told, cond=replace(cond, labels=torch.full_like(cond.labels, -1)))
            return Prediction(c.x0 + self.weight * (c.x0 - u.x0), c.eps + self.weight * (c.eps - u.eps))

        return rewrap(denoise, answer)
