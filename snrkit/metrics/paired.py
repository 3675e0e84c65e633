"""Differences of scores over pairs that share their seeds, with Student's interval."""

import itertools
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from scipy.special import stdtr, stdtrit  # type: ignore[import-untyped]

Verdict = Literal[
    "better", "worse", "equal within the margin", "no difference shown", "one range: no interval", "too few images"
]


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


def verdict(
    difference: Difference,
    better: Literal["lower", "higher"] = "lower",
    margin: float | None = None,
    biased: bool = False,
) -> Verdict:
    """What the interval of a score's difference says. `better`: which values of the score are.

    `margin`: chosen beforehand, below which a difference counts as none; without one nothing is shown to be equal. That
    the whole 95 % interval lies within it is a test of level 0.025 on either side (Schuirmann 1987).
    `biased`: whether too few images shift the score of either side, so that its interval says nothing.
    """
    if biased:
        return "too few images"
    low, high = difference.low, difference.high
    if low is None or high is None:
        return "one range: no interval"
    if not (high < 0 or low > 0):
        return "no difference shown" if margin is None or max(-low, high) >= margin else "equal within the margin"
    return "better" if (high < 0) == (better == "lower") else "worse"


def p_value(difference: Difference, pairs: int) -> float:
    """Of the two-sided t-test that the mean difference of so many pairs is 0; NaN without an interval."""
    if difference.low is None or difference.high is None:
        return math.nan
    error = (difference.high - difference.low) / 2 / float(stdtrit(pairs - 1, 0.975))
    if error == 0:
        return float(difference.mean == 0)
    return 2 * float(stdtr(pairs - 1, -abs(difference.mean) / error))


def holm(differences: Mapping[str, Difference], pairs: int, level: float = 0.05) -> tuple[str, ...]:
    """The names of those that differ from 0 where all are asked at once (Holm 1979), the surest first.

    That any of them is named though it does not differ has at most the probability `level`.
    """
    found = {name: p_value(each, pairs) for name, each in differences.items()}
    ordered = sorted((p, name) for name, p in found.items() if math.isfinite(p))
    passed = itertools.takewhile(lambda item: item[1][0] <= level / (len(ordered) - item[0]), enumerate(ordered))
    return tuple(name for _, (_, name) in passed)
