"""Differences of scores over pairs that share their seeds, with Student's interval."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from scipy.special import stdtrit  # type: ignore[import-untyped]

Verdict = Literal["better", "worse", "no difference shown", "one range: no interval"]


@dataclass(frozen=True, slots=True)
class Difference:
    """A mean difference with its 95 % interval; a single pair has none."""

    mean: float
    low: float | None
    high: float | None


def against(values: Sequence[float], base: Sequence[float]) -> Difference:
    """Mean of `values` less `base`, pair by pair, with its paired 95 % t-interval."""
    differences = [a - b for a, b in zip(values, base, strict=True)]
    mean = statistics.fmean(differences)
    if len(differences) < 2:
        return Difference(mean, None, None)
    degrees = len(differences) - 1
    half = float(stdtrit(degrees, 0.975)) * statistics.stdev(differences) / len(differences) ** 0.5
    return Difference(mean, mean - half, mean + half)


def verdict(difference: Difference, better: Literal["lower", "higher"] = "lower") -> Verdict:
    """What the interval of a score's difference says. `better`: which values of the score are."""
    low, high = difference.low, difference.high
    if low is None or high is None:
        return "one range: no interval"
    if not (high < 0 or low > 0):
        return "no difference shown"
    return "better" if (high < 0) == (better == "lower") else "worse"
