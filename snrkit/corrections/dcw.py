"""Differential correction (Yu et al. 2026, "DCW", eq. 17), in its pixel form.

After the step, x' <- x' + scale * (x' - x0), where x0 is the reconstruction of the step's last evaluation. In the ve
and flow scalings, on an Euler step, it equals the Euler step to (1 + scale) sigma'.
"""

from typing import Literal

from torch import Tensor

from snrkit.step import Step
from snrkit.value import Value


class Dcw(Value):
    """Move the new state away from (scale > 0) or towards (scale < 0) the predicted image; 0 is neutral.

    Acts in the process's own scaling, after any fresh noise, and not on the step into the clean level, where Euler's
    x' equals x0 and the correction would be zero.
    """

    kind: Literal["dcw"] = "dcw"
    mode: Literal["pixel"] = "pixel"
    scale: float = 0.0

    def after(self, step: Step) -> Tensor:
        """The corrected x_next."""
        if self.scale == 0 or step.place.there.is_clean():
            return step.x_next
        return step.x_next + self.scale * (step.x_next - step.calls[-1].prediction.x0)
