"""Percentile bootstrap over images; samples of one image are resampled together."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from snrkit.base.errors import SnrkitError
from snrkit.base.rounding import rounded
from snrkit.base.streams import BOOTSTRAP

FEWEST = 20  # images, below which a percentile interval covers far less than it says
FEWEST_RESAMPLES = 100  # whatever the confidence

# what is resampled: readings of the same name and groups share their resamples
OF_REVERSE, OF_FORWARD, OF_TRAIN, OF_WINDOW, OF_GAIN, OF_SIGMA_DATA, OF_NOMINAL = range(7)
OF_BINS = 10  # and the number of the bin


@dataclass(frozen=True, slots=True)
class Curve:
    """A reading at each level with its interval."""

    value: list[float]
    low: list[float]
    high: list[float]

    def widened(self, errors: Sequence[float]) -> "Curve":
        """With intervals that are wider by `errors` at either end."""
        low = [value - error for value, error in zip(self.low, errors, strict=True)]
        return Curve(self.value, low, [value + error for value, error in zip(self.high, errors, strict=True)])


def signed(value: float) -> str:
    """With its sign and four digits."""
    return rounded(value, 4, signed=True)


@dataclass(frozen=True, slots=True)
class Number:
    """A reading with its interval."""

    value: float
    low: float
    high: float

    def widened(self, error: float) -> "Number":
        """With an interval that is wider by `error` at either end."""
        return Number(self.value, self.low - error, self.high + error)

    def plain(self) -> str:
        """Value [low, high] to four digits."""
        return f"{self.value:.4f} [{self.low:.4f}, {self.high:.4f}]"

    def signed(self) -> str:
        """Value [low, high] with their signs; a dash where nothing could be read."""
        known = all(math.isfinite(part) for part in (self.value, self.low, self.high))
        return f"{signed(self.value)} [{signed(self.low)}, {signed(self.high)}]" if known else "-"


@dataclass(frozen=True, slots=True)
class Bootstrap:
    """How many resamples, how sure, and the seed of the draws."""

    resamples: int
    confidence: float
    seed: int

    def weights(self, groups: Tensor, number: int) -> Tensor:
        """(1 + R, n) weights that sum to 1: the sample itself, then R resamples of whole groups.

        Arms of the same `number`, one of the names above, and groups get the same resamples.
        """
        kinds, place = torch.unique(groups, return_inverse=True)
        rng = BOOTSTRAP.open(self.seed, number)
        counts = rng.multinomial(len(kinds), np.full(len(kinds), 1 / len(kinds)), size=self.resamples)
        weights = torch.cat([torch.ones(1, len(groups)), torch.from_numpy(counts)[:, place].double()]).double()
        return weights / weights.sum(1, keepdim=True)

    def curve(self, values: Tensor) -> Curve:
        """The curve of values (L, 1 + R), the sample's own first."""
        low, high = bounds(values[:, 1:], self.confidence)
        return Curve(values[:, 0].tolist(), low.tolist(), high.tolist())

    def number(self, values: Tensor) -> Number:
        """The number of values (1 + R,)."""
        low, high = bounds(values[1:], self.confidence)
        return Number(float(values[0]), float(low), float(high))


def fewest_resamples(confidence: float) -> int:
    """The fewest resamples of which one at least lies beyond either end of the central `confidence`."""
    return math.ceil(round(2 / (1 - confidence), 6))  # 1 - .9998 is not quite .0002


def check_resampling(name: str, resamples: int, confidence: float) -> None:
    """SnrkitError for resamples, an option called `name`, that say nothing of an interval of this confidence."""
    if not 0.5 < confidence < 1:
        raise SnrkitError(f"confidence is {confidence}; give a number between 0.5 and 1, such as 0.95.")
    least = max(FEWEST_RESAMPLES, fewest_resamples(confidence))
    if resamples < least:
        raise SnrkitError(f"{name} is {resamples}; with a confidence of {confidence} give {least} at least.")


def bounds(resamples: Tensor, confidence: float) -> tuple[Tensor, Tensor]:
    """(low, high) of the central `confidence` of resamples (..., R)."""
    edge = (1 - confidence) / 2
    low, high = torch.quantile(resamples, torch.tensor([edge, 1 - edge], dtype=torch.float64), dim=-1)
    return low, high
