"""How curves with intervals are drawn, and figures become files."""

import math
from collections.abc import Sequence
from typing import Any

from snrkit.base.charts import png_of
from snrkit.shift.bootstrap import Curve

DOTS = 100  # per inch


def draw_curve(axes: Any, logsnr: Sequence[float], curve: Curve, colour: str, name: str) -> None:
    """A curve with its interval; pure noise has no place on this axis."""
    x = finite_only(logsnr)
    axes.plot(x, curve.value, color=colour, marker=".", markersize=4, linewidth=1, label=name)
    axes.fill_between(x, curve.low, curve.high, color=colour, alpha=0.2, linewidth=0)


def finite_only(values: Sequence[float]) -> list[float]:
    """The values, NaN where they are not finite."""
    return [value if math.isfinite(value) else math.nan for value in values]


def png(figure: Any, title: str) -> bytes:
    """The figure below its title."""
    figure.suptitle(title, fontsize=9)
    return png_of(figure, DOTS)
