"""Charts: named curves over one axis, as CSV and as PNG, all drawn alike."""

import csv
import io
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.figure import Figure

AXIS = "logsnr, nats (noise left, image right)"
Scale = Literal["linear", "log"]
STYLES = ("-", "--", ":", "-.")
COLOURS = 10


@dataclass(frozen=True, slots=True)
class Chart:
    """Curves by name, each (x, y) of equal length, with what they show."""

    name: str  # of its files
    title: str
    label: str  # of the y axis
    curves: Mapping[str, tuple[Tensor, Tensor]]
    axis: str = AXIS
    scale: Scale = "linear"
    limits: tuple[float, float] | None = None  # of the y axis

    def csv(self) -> str:
        """One row a point: curve, x, y."""
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(["curve", self.axis.split(",")[0], self.label])
        for name, (x, y) in self.curves.items():
            writer.writerows((name, f"{a:.10g}", f"{b:.10g}") for a, b in zip(x.tolist(), y.tolist(), strict=True))
        return out.getvalue()


def draw(charts: Sequence[Chart]) -> bytes:
    """One picture of charts side by side, at most three a row."""
    from matplotlib.figure import Figure

    columns = min(3, len(charts))
    rows = math.ceil(len(charts) / columns)
    figure = Figure(figsize=(6.5 * columns, 4.2 * rows), layout="constrained")
    places = figure.subplots(rows, columns, squeeze=False).ravel()
    for place in places[len(charts) :]:
        place.set_axis_off()
    for place, chart in zip(places, charts, strict=False):
        for index, (name, (x, y)) in enumerate(chart.curves.items()):
            wide = 3.2 - 2.2 * index / max(1, len(chart.curves) - 1)  # what lies beneath shows on both sides
            style, colour = STYLES[index // COLOURS % len(STYLES)], f"C{index % COLOURS}"
            place.plot(x, y, style, color=colour, label=name, linewidth=wide)
        place.set(xlabel=chart.axis, ylabel=chart.label, title=chart.title, yscale=chart.scale)
        if chart.limits is not None:
            place.set_ylim(*chart.limits)
        place.legend(fontsize=7, framealpha=0.5)
        place.grid(alpha=0.3)
    return png_of(figure, 110)


def png_of(figure: "Figure", dots: int) -> bytes:
    """The figure, at `dots` an inch. Letters that its font does not have are boxes, of which nothing is said."""
    out = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"Glyph \d+ ")
        figure.savefig(out, format="png", dpi=dots)
    return out.getvalue()
