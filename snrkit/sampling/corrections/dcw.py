"""Differential correction in pixels or in wavelet bands (Yu et al. 2026, "DCW", eqs. 17-21).

After a step, with d = x' - x0 and x0 the reconstruction of one of the step's own evaluations (no further one is made),

    x' <- x' + pixel d                                  "pixel" mode
    x' <- x' + low g_low L d + high g_high (d - L d)    "low", "high" and "double" modes

L d is what the low band of a one-level wavelet transform alone rebuilds, so that d - L d is the share of the three high
bands: as the transform is linear, one projection replaces two transforms and an inverse. The gains g are the paper's
coefficient schedules, each a Value of this file; its eq. 21, (1 - lambda_h) sigma_t, is a misprint for the form of its
code, which is meant here. In the ve and flow scalings the pixel mode on an Euler step equals the Euler step to
(1 + pixel) sigma'. The authors' code for flow matching names another form, d = x - x0 with x the state before the step,
(`state: before`), with which it equals the Euler step to sigma' + pixel sigma.
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal, Protocol

import torch
from pydantic import Field, model_validator
from torch import Tensor

from snrkit.base.errors import SnrkitError
from snrkit.base.value import Grown, Text, Value
from snrkit.base.wavelet import add_bands, check_wavelet, low_part
from snrkit.diffusion.level import broadcast
from snrkit.sampling.step import Fit, Position, Range, Step, add_terms

Gains = tuple[Tensor, Tensor]


class GainSchedule(Protocol):
    """How the coefficients change from step to step."""

    def gains(self, position: Position) -> Gains:
        """The factors of `low` and of `high`, float64, shaped as the level."""


class Constant(Value):
    """Gains of 1 at every step."""

    kind: Literal["constant"] = "constant"

    def gains(self, position: Position) -> Gains:
        one = torch.ones_like(position.nominal.sigma)
        return one, one


class SigmaShare(Value):
    """r = sigma/sigma_max and 1 - r, sigma before the step over that of the grid's first level: the paper's code."""

    kind: Literal["sigma"] = "sigma"

    def gains(self, position: Position) -> Gains:
        """(r, 1 - r)."""
        share = position.nominal.sigma / position.grid[0].sigma
        return share, 1 - share


class ReverseVariance(Value):
    """b = (1 - abar')/(1 - abar) * (1 - abar/abar'), the variance of DDPM's reverse step, and 1 - b (eq. 20)."""

    kind: Literal["reverse_variance"] = "reverse_variance"

    def gains(self, position: Position) -> Gains:
        """(b, 1 - b), in vp terms whatever the scaling and the solver."""
        here, there = position.nominal.logsnr, position.grid[position.index + 1].logsnr
        ratio = torch.exp(torch.nn.functional.logsigmoid(here) - torch.nn.functional.logsigmoid(there))
        variance = torch.sigmoid(-there) / torch.sigmoid(-here) * (1 - ratio)
        return variance, 1 - variance


class Piecewise(Value):
    """Low bands in steps that begin below logsnr `at`, high bands in those that begin there or later (appendix D)."""

    kind: Literal["piecewise"] = "piecewise"
    at: float = Field(description="logsnr where the high bands take over, nats")

    def gains(self, position: Position) -> Gains:
        """(1, 0) or (0, 1)."""
        early = (position.nominal.logsnr < self.at).to(torch.float64)
        return early, 1 - early


class Table(Value):
    """Coefficients of their own for each step and band, fitted to the network's flow (`snrkit tune --by flow`).

    They stand in the run, so that `low` and `high` are left out.
    """

    kind: Literal["table"] = "table"

    def gains(self, position: Position) -> Gains:
        """(0, 0): what is fitted is added by FittedDcw."""
        nothing = torch.zeros_like(position.nominal.sigma)
        return nothing, nothing


AnySchedule = Annotated[Constant | SigmaShare | ReverseVariance | Piecewise | Table, Field(discriminator="kind")]


class Dcw(Grown):
    """Move the new state away from (above 0) or towards (below 0) the predicted image; all coefficients 0 is neutral.

    `pixel` alone, `low` alone, `high` alone and both `low` and `high` are the paper's four modes. Acts after any fresh
    noise, and not on the step into the clean level. `space: native` takes d = x' - x0 in the process's own scaling, as
    each of the papers does; `unscaled` takes x'/alpha' - x0 and multiplies back (in ve the same). `state: before`
    takes the state and the alpha of the step's begin in place of those of its end. `evaluation`: whose x0, where the
    solver asks more than once a step. Bands of videos (B, C, T, H, W) are those of each frame, in space.
    SnrkitError where the state is neither, or has less than 2x2 pixels.
    """

    later: ClassVar[tuple[str, ...]] = ("state",)
    kind: Literal["dcw"] = "dcw"
    pixel: float = Field(
        default=0.0,
        description="coefficient of x' - x0 in all bands alike; above 0 is away from the predicted image, 0 is neutral",
    )
    low: float = Field(
        default=0.0,
        description="coefficient of the low wavelet band of x' - x0, times its gain by schedule; 0 is neutral",
    )
    high: float = Field(
        default=0.0,
        description="coefficient of the three high wavelet bands of x' - x0, times their gain by schedule; 0 is "
        "neutral",
    )
    schedule: AnySchedule = Field(default=Constant(), description="gains of `low` and `high` from step to step")
    wavelet: Text = Field(default="haar", description="wavelet of the bands, as PyWavelets calls it")
    padding: Text = Field(default="zero", description="how images go on beyond their edges, as PyWavelets calls it")
    space: Literal["native", "unscaled"] = Field(
        default="native", description="native: x' - x0 in the process's own scaling; unscaled: x' - alpha' x0"
    )
    evaluation: Literal["last", "first"] = Field(
        default="last", description="which evaluation's x0 is taken, where the solver makes several in a step"
    )
    state: Literal["after", "before"] = Field(
        default="after",
        description="after: x' - x0, of the state that the step made; before: x - x0, of the one that it began from",
    )
    tunable: ClassVar[dict[str, Range]] = dict.fromkeys(
        ("pixel", "low", "high"), Range(0.0, -0.1, 0.2, coarse=0.01, fine=0.001)
    )

    @model_validator(mode="after")
    def _acts(self) -> "Dcw":
        if self.pixel and (self.low or self.high):
            raise ValueError("pixel is low and high in one; give pixel, or low and high")
        if (self.pixel or self.low or self.high) and isinstance(self.schedule, Table):
            raise ValueError("schedule table has its coefficients from a fit; drop pixel, low and high")
        if self.pixel and not isinstance(self.schedule, Constant):
            raise ValueError("schedule has no effect on pixel; drop it, or give low and high")
        if self.pixel and (self.wavelet, self.padding) != ("haar", "zero"):
            raise ValueError("wavelet and padding have no effect on pixel; drop them, or give low and high")
        try:
            check_wavelet(self.wavelet, self.padding)
        except SnrkitError as error:
            raise ValueError(str(error)) from None
        return self

    @property
    def terms(self) -> int:
        """One for the low band and one for the high ones, where the schedule is a table."""
        return 2 if isinstance(self.schedule, Table) else 0

    def with_fit(self, fit: Fit) -> "FittedDcw":
        """The correction with a table of coefficients."""
        return FittedDcw(self, fit)

    def after(self, step: Step) -> Tensor:
        if step.position.there.is_clean() or not (self.pixel or self.low or self.high):
            return step.x_next
        difference = self.difference(step)
        if self.pixel:
            return step.x_next + self.pixel * difference
        check_images(difference)
        of_low, of_high = self.schedule.gains(step.position)
        low, high = broadcast(self.low * of_low, difference), broadcast(self.high * of_high, difference)
        return add_bands(step.x_next, difference, low, high, self.wavelet, self.padding)

    def difference(self, step: Step) -> Tensor:
        """d = x' - x0 (B, *), or x - x0."""
        x0 = step.calls[-1 if self.evaluation == "last" else 0].prediction.x0
        place, x = step.position.there, step.x_next
        if self.state == "before":
            place, x = step.position.here, step.x
        if self.space == "unscaled":
            x0 = broadcast(place.alpha, x0) * x0
        return x - x0


@dataclass(frozen=True, slots=True)
class FittedDcw:
    """DCW with coefficients of their own for each step and band."""

    value: Dcw
    fit: Fit

    def after(self, step: Step) -> Tensor:
        if step.position.there.is_clean():
            return step.x_next
        difference = self.value.difference(step)
        check_images(difference)
        low = low_part(difference, self.value.wavelet, self.value.padding)
        return add_terms(step.x_next, (low, difference - low), self.fit, step.position.index)


def check_images(difference: Tensor) -> None:
    """Refuse states that have no bands: SnrkitError."""
    if difference.ndim not in (4, 5):
        raise SnrkitError(
            "dcw's bands need images (B, C, H, W) or videos (B, C, T, H, W), and this state has shape "
            f"{tuple(difference.shape)}; unpack a transformer's tokens before the transform, or use dcw's pixel "
            "coefficient"
        )
