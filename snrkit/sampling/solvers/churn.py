"""EDM's stochastic sampler (Karras et al. 2022, Algorithm 2), in any scaling.

With r = sigma/alpha: r^ = r (1 + gamma), gamma = min(S_churn/N, sqrt(2) - 1) for r in [S_min, S_max], else 0;
the state is noised to r^,  x^ = (alpha^/alpha) (x + alpha sqrt(r^^2 - r^2) S_noise n),  then Heun's step from r^.
"""

import math
from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from snrkit.base.value import Value
from snrkit.diffusion.level import Level, broadcast
from snrkit.diffusion.prediction import Denoiser
from snrkit.sampling.solvers.heun import heun_step
from snrkit.sampling.step import Call, Memory, Noise, Position


class Churn(Value):
    """Order 2 (in the distribution), two evaluations per step, one in the last. At alpha = 0 nothing is added."""

    kind: Literal["churn"] = "churn"
    s_churn: float = Field(
        default=40.0,
        ge=0,
        description="S_churn of Karras et al. 2022: in each step sigma grows by its share S_churn/steps, sqrt(2) "
        "- 1 at most; 0 is Heun",
    )
    s_min: float = Field(
        default=0.05, ge=0, description="S_min of Karras et al. 2022: no noise is added at a smaller sigma/alpha"
    )
    s_max: float | None = Field(
        default=50.0,
        gt=0,
        description="S_max of Karras et al. 2022: no noise is added at a larger sigma/alpha; null: no upper limit",
    )
    s_noise: float = Field(
        default=1.003,
        gt=0,
        description="S_noise of Karras et al. 2022: standard deviation of the added noise over the one that the "
        "level asks for",
    )

    @model_validator(mode="after")
    def _ordered(self) -> "Churn":
        if self.s_max is not None and self.s_min > self.s_max:
            raise ValueError(f"s_min {self.s_min} must not be above s_max {self.s_max}")
        return self

    @property
    def order(self) -> int:
        """Second, Heun's, where no noise is raised."""
        return 2

    @property
    def renews(self) -> float | None:
        """0 without churn; otherwise noise is added, not renewed, and only between s_min and s_max."""
        return None if self.s_churn else 0.0

    def step(
        self, denoise: Denoiser, x: Tensor, position: Position, memory: Memory, noise: Noise
    ) -> tuple[Tensor, tuple[Call, ...], Memory]:
        """Raise the level of the state, then Heun."""
        if self.s_churn == 0:
            return *heun_step(denoise, x, position), None
        gamma, fresh = (
            self._gamma(position),
            noise(x),
        )  # drawn in every step, so that no image's noise depends on others
        process = denoise.process
        raised = process.level(process.snap(position.here.logsnr - 2 * torch.log1p(gamma)))
        x = torch.where(broadcast(gamma, x) > 0, raise_level(x, position.here, raised, fresh * self.s_noise), x)
        moved = Position(position.index, position.grid, raised, position.there)
        return *heun_step(denoise, x, moved), None

    def _gamma(self, position: Position) -> Tensor:
        ratio = torch.exp(-position.here.logsnr / 2)
        active = ratio.isfinite() & (ratio >= self.s_min) & (ratio <= (math.inf if self.s_max is None else self.s_max))
        return active.to(ratio) * min(self.s_churn / (len(position.grid) - 1), math.sqrt(2) - 1)


def raise_level(x: Tensor, here: Level, there: Level, noise: Tensor) -> Tensor:
    """The state x at `here` carried to the noisier level `there` by adding `noise` of the right variance."""
    ratio, ratio_next = here.sigma / here.alpha, there.sigma / there.alpha
    added = here.alpha * ((ratio_next - ratio) * (ratio_next + ratio)).sqrt()
    return broadcast(there.alpha / here.alpha, x) * (x + broadcast(added, x) * noise)
