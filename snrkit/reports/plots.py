"""Figures of a page as values, and where every mark of them lies.

    Curves   readings against logsnr, one curve a sampler, each with its interval and its null as bands
    Forest   differences, or distances, with their intervals, one row each, against a neutral value
    Front    a score with its interval against what it costs, and the step line of the best at every cost

Figures are drawn here, as SVG, at two widths of which the page shows one; a short script (assets/page.js) answers to
pointer, keys and legend. A library (uPlot, or the far larger Vega-Lite and Plotly) was weighed and left: it draws when
its script runs, uPlot on a canvas, so that a figure without the script is nothing; a canvas gives no SVG to put into a
paper and nothing to a screen reader; and bands of nulls and forest plots would be code of ours all the same. What is
here prints, follows light and dark by the page's own style, and is the same bytes for the same run.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Literal

from snrkit.base.charts import Chart

Hover = Literal["x", "y", "xy"]
MOST_POINTS = 128  # of a curve that are drawn
DENSE_POINTS, DENSE_DOTS = 61, 16  # of a dense one: along its line, and that answer to the pointer
MOST_POWERS = 5  # of ten that an axis names
WIDE, NARROW = (640, 340), (352, 280)  # units, about pixels
LEFT, RIGHT, TOP, BOTTOM = 58.0, 14.0, 26.0, 44.0  # margins
ROW, INDENT = 38.0, 14.0  # of a forest
APART, SPREAD = 9.0, 40.0  # marks of one cost, and all of them together
LETTER = 6.6  # width of a letter
MINUS = "\N{MINUS SIGN}"
RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


@dataclass(frozen=True, slots=True)
class Point:
    """A value at a place, with its interval; NaN where there is none."""

    x: float
    y: float
    low: float = math.nan
    high: float = math.nan


@dataclass(frozen=True, slots=True)
class Series:
    """What is drawn of one sampler; `null` is what its reading would be without a bias."""

    name: str
    points: tuple[Point, ...]
    null: tuple[Point, ...] = ()


@dataclass(frozen=True, slots=True)
class Curves:
    """Readings against one axis. Dense ones are lines without marks, whose numbers lie in a file beside the page."""

    title: str
    caption: str
    x: str  # what the axis says, with its unit
    y: str
    series: tuple[Series, ...]
    neutral: float | None = None
    dense: bool = False
    log: bool = False  # whether y is drawn by its logarithm, so that what is not above 0 has no place
    limits: tuple[float, float] | None = None  # of y, beyond which nothing is drawn


@dataclass(frozen=True, slots=True)
class ForestRow:
    """One value with its interval, and what is said of it."""

    name: str
    value: float
    low: float
    high: float
    verdict: Literal["better", "worse", "none"] = "none"
    null: tuple[float, float] | None = None  # the interval of what it would be without a bias


@dataclass(frozen=True, slots=True)
class Forest:
    """Values with intervals, one row each."""

    title: str
    caption: str
    x: str
    rows: tuple[ForestRow, ...]
    neutral: float | None = 0.0


@dataclass(frozen=True, slots=True)
class Front:
    """Scores against costs."""

    title: str
    caption: str
    x: str
    y: str
    series: tuple[Series, ...]
    better: Literal["lower", "higher"]


Plot = Curves | Forest | Front


@dataclass(frozen=True, slots=True)
class Tick:
    """A place on an axis, and what stands there."""

    at: float
    text: str


@dataclass(frozen=True, slots=True)
class Dot:
    """A mark that answers to the pointer: its place, outline and words."""

    x: float
    y: float
    path: str
    head: str
    tip: str


@dataclass(frozen=True, slots=True)
class Mark:
    """What is drawn of one series."""

    name: str
    verdict: str
    band: str  # paths, empty where there is nothing to draw
    line: str
    whiskers: str
    dots: tuple[Dot, ...]


@dataclass(frozen=True, slots=True)
class Label:
    """Text within a figure."""

    x: float
    y: float
    text: str
    end: bool = False  # whether it ends at x, and does not begin there


@dataclass(frozen=True, slots=True)
class Drawing:
    """A figure laid out in a width."""

    width: int
    height: float
    x_label: str
    y_label: str
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    neutral: str
    front: str
    nulls: tuple[tuple[str, str], ...]  # (area, line) of those that differ
    marks: tuple[Mark, ...]
    labels: tuple[Label, ...]
    hover: Hover
    left: float = LEFT
    right: float = RIGHT
    top: float = TOP
    bottom: float = BOTTOM


@dataclass(frozen=True, slots=True)
class Scale:
    """From values to places; of a logarithmic one the ends are logarithms of ten."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        """The place of a value."""
        value = math.log10(value) if self.log else value
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)

    def ticks(self, most: int) -> tuple[Tick, ...]:
        """At round values, `most` at most; of a logarithmic one at powers of ten."""
        if self.log:
            powers = range(math.ceil(self.low), math.floor(self.high) + 1)
            shown = powers[:: -(-len(powers) // MOST_POWERS) or 1]
            return tuple(Tick(self(10.0**power), _power(power)) for power in shown)
        rough = (self.high - self.low) / most
        power = 10.0 ** math.floor(math.log10(rough))
        step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= rough * (1 - 1e-9))
        digits = next(d for d in range(20) if math.isclose(round(step, d), step, rel_tol=1e-6))
        first = math.ceil(self.low / step - 1e-9)
        values = [index * step for index in range(first, math.floor(self.high / step + 1e-9) + 1)]
        return tuple(Tick(self(value), f"{value + 0.0:.{digits}f}".replace("-", MINUS)) for value in values)


def curves_of(chart: Chart) -> Curves:
    """A chart as a figure of a page; its numbers lie in its CSV beside the page."""
    series = tuple(
        Series(name, tuple(Point(*place) for place in zip(x.tolist(), y.tolist(), strict=True)))
        for name, (x, y) in chart.curves.items()
    )
    caption = f"Numbers: {chart.name}.csv beside this page."
    return Curves(
        chart.title, caption, chart.axis, chart.label, series, dense=True, log=chart.scale == "log", limits=chart.limits
    )


def named(plot: Plot) -> tuple[str, ...]:
    """The series that a legend names; those of a forest stand beside their rows."""
    return () if isinstance(plot, Forest) else tuple(series.name for series in plot.series)


def numbers(plot: Plot) -> tuple[Sequence[str], list[Sequence[str]]]:
    """(header, rows): everything that a figure shows, to six digits."""
    if isinstance(plot, Forest):
        rows = [(row.name, *map(_exact, (row.value, row.low, row.high))) for row in plot.rows]
        return ("", plot.x, "low", "high"), list(rows)
    nulls = any(series.null for series in plot.series)
    header = ("sampler", plot.x, plot.y, "low", "high", *(("null", "null low", "null high") if nulls else ()))
    return header, [line for series in plot.series for line in _lines(series, nulls)]


def _lines(series: Series, nulls: bool) -> Iterator[Sequence[str]]:
    empty = Point(math.nan, math.nan)
    for index, point in enumerate(series.points):
        null = series.null[index] if index < len(series.null) else empty
        more = (null.y, null.low, null.high) if nulls else ()
        yield (series.name, *(_exact(value) for value in (point.x, point.y, point.low, point.high, *more)))


def drawing(plot: Plot, size: tuple[int, int], index: Mapping[str, int]) -> Drawing | None:
    """A figure laid out in (width, height); None where it has nothing finite. `index`: of every series on the page."""
    if isinstance(plot, Forest):
        return _forest(plot, size[0])
    return _curves(plot, size, index) if isinstance(plot, Curves) else _front(plot, size, index)


def _curves(plot: Curves, size: tuple[int, int], index: Mapping[str, int]) -> Drawing | None:
    most = DENSE_POINTS if plot.dense else MOST_POINTS
    drawn = [(s.name, _within(_thin(s.points, most), plot), _within(_thin(s.null, most), plot)) for s in plot.series]
    everything = [point for _, points, null in drawn for point in (*points, *null)]
    scales = _scales(everything, size, [] if plot.neutral is None else [plot.neutral], plot.log)
    if scales is None:
        return None
    x, y = scales
    marks = []
    for name, points, _ in drawn:
        answering = _thin(points, DENSE_DOTS if plot.dense else most)
        dots = tuple(_dots(answering, x, y, plot, index.get(name, 0)))
        marks.append(Mark(name, "", _area(points, x, y), _path(points, x, y), "", dots))
    nulls = tuple(dict.fromkeys((_area(null, x, y), _path(null, x, y)) for _, _, null in drawn if null))
    neutral = "" if plot.neutral is None else f"M{_at(x.start)} {_at(y(plot.neutral))}H{_at(x.end)}"
    ticks = x.ticks(size[0] // 80), y.ticks(6)
    return Drawing(size[0], size[1], plot.x, plot.y, *ticks, neutral, "", nulls, tuple(marks), (), "x")


def _front(plot: Front, size: tuple[int, int], index: Mapping[str, int]) -> Drawing | None:
    everything = [point for series in plot.series for point in series.points]
    scales = _scales(everything, size, [])
    if scales is None:
        return None
    x, y = Scale(scales[0].low, scales[0].high, LEFT + SPREAD / 2, size[0] - RIGHT - SPREAD / 2), scales[1]
    marks = []
    for series, aside in zip(plot.series, _asides(plot.series), strict=True):
        place = Scale(x.low, x.high, x.start + aside, x.end + aside)
        whiskers = "".join(_whisker(point, place, y) for point in _finite(series.points))
        dots = tuple(_dots(series.points, place, y, plot, index.get(series.name, 0)))
        marks.append(Mark(series.name, "", "", "", whiskers, dots))
    ticks = x.ticks(size[0] // 80), y.ticks(6)
    front = _steps(everything, plot.better, x, y)
    return Drawing(size[0], size[1], plot.x, plot.y, *ticks, "", front, (), tuple(marks), (), "xy")


def _forest(plot: Forest, width: int) -> Drawing | None:
    known = [row for row in plot.rows if math.isfinite(row.value)]
    if not known:
        return None
    ends = [end for row in known for end in (row.value, row.low, row.high, *(row.null or ())) if math.isfinite(end)]
    height = 6 + ROW * len(known) + BOTTOM
    x = _scale([*ends, *([] if plot.neutral is None else [plot.neutral])], INDENT, width - RIGHT)
    heights = [6 + ROW * number + 26 for number in range(len(known))]
    nulls = tuple((_box(row.null, x, at), "") for row, at in zip(known, heights, strict=True) if row.null is not None)
    marks = tuple(_forest_mark(row, x, at) for row, at in zip(known, heights, strict=True))
    labels = tuple(label for row, at in zip(known, heights, strict=True) for label in _row_labels(row, width, at - 11))
    neutral = "" if plot.neutral is None else f"M{_at(x(plot.neutral))} 6V{_at(height - BOTTOM)}"
    ticks = x.ticks(width // 80)
    return Drawing(
        width, height, plot.x, "", ticks, (), neutral, "", nulls, marks, labels, "y", left=INDENT, top=6.0
    )  # fmt: skip


def _forest_mark(row: ForestRow, x: Scale, at: float) -> Mark:
    whisker = _across(row, x, at) if math.isfinite(row.low) and math.isfinite(row.high) else ""
    shape = {"better": 0, "worse": 1, "none": 3}[row.verdict]
    dot = Dot(x(row.value), at, outline(shape, x(row.value), at), row.name, _said(row.value, row.low, row.high))
    return Mark(row.name, row.verdict, "", "", whisker, (dot,))


def _row_labels(row: ForestRow, width: int, at: float) -> Iterator[Label]:
    """The name of a row, and its value where there is room beside it."""
    room, said = int(width / LETTER) - 4, _said(row.value, row.low, row.high, digits=3)
    yield Label(INDENT, at, _cut(row.name, room))
    if len(row.name) + len(said) < room:
        yield Label(width - RIGHT, at, said, end=True)


def _within(points: tuple[Point, ...], plot: Curves) -> tuple[Point, ...]:
    """The points, without the values of those that have no place."""
    low, high = plot.limits or (-math.inf, math.inf)
    low = max(low, math.ulp(0.0)) if plot.log else low
    return tuple(point if low <= point.y <= high else Point(point.x, math.nan) for point in points)


def _scales(
    points: Sequence[Point], size: tuple[int, int], more: Sequence[float], log: bool = False
) -> tuple[Scale, Scale] | None:
    known = _finite(points)
    if not known:
        return None
    heights = [value for p in known for value in (p.y, p.low, p.high) if math.isfinite(value)]
    x = _scale([point.x for point in known], LEFT, size[0] - RIGHT)
    return x, _scale([*heights, *more], size[1] - BOTTOM, TOP, log)


def _scale(values: Sequence[float], start: float, end: float, log: bool = False) -> Scale:
    values = [math.log10(value) for value in values if value > 0] if log else values
    low, high = min(values), max(values)
    room = (high - low) * 0.05 or abs(high) * 0.1 or 1.0
    return Scale(low - room, high + room, start, end, log)


def _thin(points: tuple[Point, ...], most: int) -> tuple[Point, ...]:
    """At most so many of them, both ends among them."""
    if len(points) <= most:
        return points
    last = len(points) - 1
    return tuple(points[round(i * last / (most - 1))] for i in range(most))


def _finite(points: Sequence[Point]) -> list[Point]:
    return [point for point in points if math.isfinite(point.x) and math.isfinite(point.y)]


def _pieces(points: Sequence[Point], whole: bool) -> Iterator[list[Point]]:
    """Stretches without a gap; with `whole` intervals."""

    def known(point: Point) -> bool:
        values = (point.x, point.y, *((point.low, point.high) if whole else ()))
        return all(map(math.isfinite, values))

    return (list(piece) for there, piece in groupby(points, known) if there)


def _path(points: Sequence[Point], x: Scale, y: Scale) -> str:
    pieces = ("L".join(f"{_at(x(p.x))} {_at(y(p.y))}" for p in piece) for piece in _pieces(points, False))
    return "".join(f"M{piece}" for piece in pieces)


def _area(points: Sequence[Point], x: Scale, y: Scale) -> str:
    parts = []
    for piece in _pieces(points, True):
        there = [f"{_at(x(p.x))} {_at(y(p.low))}" for p in piece]
        back = [f"{_at(x(p.x))} {_at(y(p.high))}" for p in reversed(piece)]
        parts.append(f"M{'L'.join([*there, *back])}Z")
    return "".join(parts)


def _dots(points: Sequence[Point], x: Scale, y: Scale, plot: Curves | Front, number: int) -> Iterator[Dot]:
    name = plot.x.split(",")[0].split(" (")[0]
    for p in _finite(points):
        head = f"{name} {_short(p.x)}"
        yield Dot(x(p.x), y(p.y), outline(number, x(p.x), y(p.y)), head, _said(p.y, p.low, p.high))


def outline(number: int, x: float, y: float) -> str:
    """The outline of a mark: circle, square, triangle or diamond."""
    outlines = (
        "m-3 0a3 3 0 1 0 6 0a3 3 0 1 0-6 0z",
        "m-3-3h6v6h-6z",
        "m0-4l4 7h-8z",
        "m0-4.2l4.2 4.2l-4.2 4.2l-4.2-4.2z",
    )
    return f"M{_at(x)} {_at(y)}{outlines[number % len(outlines)]}"


def _asides(series: Sequence[Series]) -> list[float]:
    """By how much each stands aside, so that those of one cost do not hide each other."""
    costs = [one.points[0].x if one.points else math.nan for one in series]
    turns = [(costs[:place].count(cost), costs.count(cost)) for place, cost in enumerate(costs)]
    return [min(APART, SPREAD / count) * (turn - (count - 1) / 2) for turn, count in turns]


def _whisker(point: Point, x: Scale, y: Scale) -> str:
    if not (math.isfinite(point.low) and math.isfinite(point.high)):
        return ""
    at, low, high = _at(x(point.x)), _at(y(point.low)), _at(y(point.high))
    return f"M{at} {low}V{high}m-4 0h8M{at} {low}m-4 0h8"


def _across(row: ForestRow, x: Scale, at: float) -> str:
    low, high = _at(x(row.low)), _at(x(row.high))
    return f"M{low} {_at(at)}H{high}M{low} {_at(at - 4)}v8M{high} {_at(at - 4)}v8"


def _box(ends: tuple[float, float], x: Scale, at: float) -> str:
    low, high = (_at(x(end)) for end in ends)
    return f"M{low} {_at(at - 7)}H{high}v14H{low}z"


def _steps(points: Sequence[Point], better: Literal["lower", "higher"], x: Scale, y: Scale) -> str:
    """The best that is to be had at every cost."""
    sign, best, path = (1 if better == "lower" else -1), math.inf, ""
    for point in sorted(_finite(points), key=lambda p: (p.x, sign * p.y)):
        if sign * point.y < best:
            best = sign * point.y
            path += f"H{_at(x(point.x))}V{_at(y(point.y))}" if path else f"M{_at(x(point.x))} {_at(y(point.y))}"
    return f"{path}H{_at(x.end)}" if path else ""


def _at(place: float) -> str:
    return f"{place:.1f}".removesuffix(".0")


def _power(power: int) -> str:
    """Ten to a whole power."""
    if -3 <= power <= 3:
        return f"{10.0**power:g}"
    return "10" + str(power).translate(RAISED)


def _cut(text: str, room: int) -> str:
    return text if len(text) <= room else f"{text[: room - 1]}…"


def _short(value: float, digits: int = 4) -> str:
    return f"{value:.{digits}g}".replace("-", MINUS)


def _exact(value: float) -> str:
    return f"{value:.6g}" if math.isfinite(value) else "-"


def _said(value: float, low: float, high: float, digits: int = 4) -> str:
    """A value with its interval."""
    said = _short(value, digits)
    if not (math.isfinite(low) and math.isfinite(high)):
        return said
    return f"{said} [{_short(low, digits)}, {_short(high, digits)}]"
