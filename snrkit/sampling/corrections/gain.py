"""A constant gain, the plainest of all corrections and their control: x' <- (1 + gain) x' after every step.

What another correction of one coefficient gains beyond it is not a matter of the states' size alone.
"""

from typing import ClassVar, Literal

from pydantic import Field
from torch import Tensor

from snrkit.base.value import Value
from snrkit.sampling.step import Range, Step


class Gain(Value):
    """Multiply each new state, the finished image too, by 1 + `gain`; 0 is neutral."""

    kind: Literal["gain"] = "gain"
    gain: float = Field(default=0.0, description="share by which each new state is made larger; 0 is neutral")
    tunable: ClassVar[dict[str, Range]] = {"gain": Range(0.0, -0.1, 0.1, coarse=0.005, fine=0.0005)}

    def after(self, step: Step) -> Tensor:
        return step.x_next + self.gain * step.x_next if self.gain else step.x_next
