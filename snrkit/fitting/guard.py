"""The guard: nothing fitted is used unless it takes samples nearer to the flow, on first states that were not fitted.

With X_f and X_b the clean states of the fitted sampler and of its base from M fresh first states and d the numbers of
an image, D_j = |X_f - X*|^2/d - |X_b - X*|^2/d, paired. X* is known up to an error whose rms e is stated, which moves
the mean of D by at most 2 e rms(X_f - X_b). The fit is used if

    mean(D) + r sd(D)/sqrt(M) + 2 e rms(X_f - X_b) < 0,

one test of one fit. r is the larger of Student's t_.95 and of its image under the inverse of the transformation by
which Hall (1992, "On the removal of skewness by transformation", J. R. Statist. Soc. B 54) takes the skewness g of D
out of Student's ratio,

    r = (1 - (1 - b (t + b/6))^(1/3)) 3/b,    b = g/sqrt(M),

as rare large harm makes the mean and the spread of most draws too small, both at once; rare large gains make the plain
bound too large, which is left so. A fit that helps nowhere is used in 5 % of cases where D is normal, and in more where
D is skewed (docs/fitted.md has the rates). No bound of M states knows of what none of them shows: harm in a share q of
all states is in none of M with the chance (1 - q)^M, and the fit then passes. `largest` says how much of the sum of
squares of D the one largest state holds.

What follows from a distance: samples and flow are a coupling, so that

    W2(samples, data) <= W2(flow, data) + sqrt(d) rms(X - X*).

The same coupling bounds by how much the root of a Frechet distance on the images themselves can change (Gelbrich 1990:
a Frechet distance is at most W2^2), |FD(samples, data)^(1/2) - FD(flow, data)^(1/2)| <= sqrt(d) rms(X - X*). It does
not say that a Frechet distance falls: this one can prefer samples of too little variance to those of the flow.
"""

import math
from dataclasses import dataclass

from torch import Tensor

from snrkit.sampling.flow import rms
from snrkit.shift.bootstrap import Number
from snrkit.shift.flow_distance import CONFIDENCE, distance, per_state, student

MOST = 0.5  # of the squares of the change, beyond which it is said that one state holds them


@dataclass(frozen=True, slots=True)
class Guard:
    """Whether a fitted sampler comes nearer to the flow than its base does."""

    helps: bool
    change: float  # mean of D, of squared distances for each number of an image
    upper: float  # its one-sided bound of CONFIDENCE
    base: Number  # rms distance of the base to the flow, with its interval
    fitted: Number  # and of what was fitted
    reference: float  # rms error of the flow itself
    largest: float = math.nan  # the share of the sum of squares of D that one state holds; NaN in older files


def guard_says(guard: Guard) -> str:
    """The verdict in words."""
    said = "nearer: it is used" if guard.helps else "not shown to be nearer: the coefficients stay neutral"
    warning = guard_warns(guard)
    return said if warning is None else f"{said}; {warning}"


def guard_warns(guard: Guard) -> str | None:
    """That one state holds most of what the verdict is about, so that other states could decide otherwise; or None."""
    if guard.largest > MOST:
        return f"one first state holds {guard.largest:.0%} of the squares of the change"
    return None


def guarded(base: Tensor, fitted: Tensor, flow: Tensor, error: float) -> Guard:
    """The test on clean states (M, *) of the base and of the fitted sampler, and the flow's with its rms error."""
    of_base, of_fitted = (per_state(x - flow) for x in (base, fitted))
    change = of_fitted - of_base
    mean, upper = float(change.mean()), upper_bound(change, 2 * error * rms(fitted - base))
    reached = distance(of_base, error), distance(of_fitted, error)
    return Guard(upper < 0, mean, upper, *reached, error, largest_share(change))


def largest_share(change: Tensor) -> float:
    """The share of the sum of squares of a change (M,) that one state holds; 0 where nothing changed."""
    squares = change.square()
    whole = float(squares.sum())
    return float(squares.max()) / whole if whole else 0.0


def upper_bound(change: Tensor, more: float) -> float:
    """The one-sided upper bound of the mean of a paired change (M,) of squares, and `more` for what is not known."""
    spread = float(change.std()) / math.sqrt(len(change))
    quantile = student(len(change) - 1, CONFIDENCE)
    return float(change.mean()) + max(quantile, _skewed(quantile, change)) * spread + more


def _skewed(quantile: float, change: Tensor) -> float:
    """The quantile under the inverse of Hall's transformation, written so that it is exact at no skewness."""
    b = max(0.0, skewness(change)) / math.sqrt(len(change))
    root = math.cbrt(1 - b * (quantile + b / 6))
    return 3 * (quantile + b / 6) / (1 + root + root**2)


def skewness(values: Tensor) -> float:
    """Fisher's, of values (M,), the third cumulant over the cube of the standard deviation; 0 where nothing varies."""
    count, spread = len(values), float(values.std())
    if count < 3 or not (spread**3):
        return 0.0
    return float((values - values.mean()).pow(3).mean()) * count**2 / ((count - 1) * (count - 2)) / spread**3
