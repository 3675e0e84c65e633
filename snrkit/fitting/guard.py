"""The guard: nothing fitted is used unless it takes samples nearer to the flow, on first states that were not fitted.

With X_f and X_b the clean states of the fitted sampler and of its base from M fresh first states and d the numbers of
an image, D_j = |X_f - X*|^2/d - |X_b - X*|^2/d, paired. X* is known up to an error whose rms e is stated, which moves
the mean of D by at most 2 e rms(X_f - X_b). The fit is used if

    mean(D) + t_.95 sd(D)/sqrt(M) + 2 e rms(X_f - X_b) < 0:

one test of one fit, so that a fit which helps nowhere is used in at most 5 % of cases. What follows: samples and flow
are a coupling, so that

    W2(samples, data) <= W2(flow, data) + sqrt(d) rms(X - X*).

It says nothing of Frechet distances, which can prefer samples of too little variance.
"""

import math
from dataclasses import dataclass

from torch import Tensor

from snrkit.sampling.flow import rms
from snrkit.shift.bootstrap import Number
from snrkit.shift.flow_distance import CONFIDENCE, distance, per_state, student


@dataclass(frozen=True, slots=True)
class Guard:
    """Whether a fitted sampler comes nearer to the flow than its base does."""

    helps: bool
    change: float  # mean of D, of squared distances for each number of an image
    upper: float  # its one-sided bound of CONFIDENCE
    base: Number  # rms distance of the base to the flow, with its interval
    fitted: Number  # and of what was fitted
    reference: float  # rms error of the flow itself


def guard_says(guard: Guard) -> str:
    """The verdict in words."""
    if guard.helps:
        return "nearer: it is used"
    return "not shown to be nearer: the coefficients stay neutral"


def guarded(base: Tensor, fitted: Tensor, flow: Tensor, error: float) -> Guard:
    """The test on clean states (M, *) of the base and of the fitted sampler, and the flow's with its rms error."""
    of_base, of_fitted = (per_state(x - flow) for x in (base, fitted))
    change = of_fitted - of_base
    mean, upper = float(change.mean()), upper_bound(change, 2 * error * rms(fitted - base))
    return Guard(upper < 0, mean, upper, distance(of_base, error), distance(of_fitted, error), error)


def upper_bound(change: Tensor, more: float) -> float:
    """The one-sided upper bound of the mean of a paired change (M,) of squares, and `more` for what is not known."""
    spread = float(change.std()) / math.sqrt(len(change))
    return float(change.mean()) + student(len(change) - 1, CONFIDENCE) * spread + more
