"""A score with its standard error, and the 95 % interval that follows."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

NORMAL = 1.959964  # half the width of a 95 % interval, in standard errors


@dataclass(frozen=True, slots=True)
class Error:
    """Standard errors of a score.

    `own` comes from the images that are scored, and is independent in disjoint sets of them; `common` from those of the
    reference, and moves all scores against one reference alike: it is no part of their differences.
    """

    own: float
    common: float

    @property
    def whole(self) -> float:
        """Of both."""
        return math.hypot(self.own, self.common)


@dataclass(frozen=True, slots=True)
class Estimate:
    """A score and how sure it is."""

    value: float
    error: Error


def pooled(errors: Sequence[Error]) -> Error:
    """The errors of the mean of scores of disjoint sets of images against one reference."""
    own = math.sqrt(sum(error.own**2 for error in errors)) / len(errors)
    return Error(own, sum(error.common for error in errors) / len(errors))
