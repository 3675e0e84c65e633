"""What a page shows of samplers before its tables: the verdict in words, figures, and how the samplers differ.

Every function takes the records of measurements or scores by the name under which a page shows their sampler.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

from snrkit.metrics.paired import Difference
from snrkit.metrics.records import SamplerScores
from snrkit.metrics.scores import Entry, ScoreDefinition, by_key
from snrkit.reports.blocks import Block, Flip, Heading, OnPage, Paragraph, Picture, Table, Verdict, plain
from snrkit.reports.plots import Curves, ForestRow, Front, Point, Series
from snrkit.shift.bootstrap import Curve, Number
from snrkit.shift.files import ShiftRecord
from snrkit.shift.measure import Shift
from snrkit.shift.verdict import Side, side_of

LOGSNR = "logsnr, nats (noise left, image right)"
BAND = "Coloured bands hold the interval of a reading, grey bands and dotted lines its null."
BANDS = {"ll": "coarse structure", "lh": "edges along one direction", "hl": "edges along the other", "hh": "diagonals"}

Shifts = Mapping[str, ShiftRecord]
AllScores = Mapping[str, SamplerScores]


def verdict(scores: AllScores, shifts: Shifts) -> Verdict:
    """What the records say, in a sentence or two."""
    said = [_best(scores), _shifted(shifts)]
    return Verdict(" ".join(text for text in said if text) or "Nothing is scored and no shift is measured yet.")


def _best(scores: AllScores) -> str:
    alike, lead = comparable(scores)
    found = {
        name: record.summary[lead.key]
        for name, record in alike.items()
        if lead.key in record.summary and lead.key not in record.biased
    }
    if not found:
        return ""
    best, entry = best_of(found, lead)
    head, nfe = lead.head(alike[best].names), alike[best].nfe
    value = f"{entry.mean:.{lead.digits}f} at {nfe} evaluations of the network"
    if len(found) == 1:
        return f"{best} has {head} {value}."
    return f"{best} has the {'lowest' if lead.better == 'lower' else 'highest'} {head}, {value}."


def best_of(found: Mapping[str, Entry], score: ScoreDefinition) -> tuple[str, Entry]:
    """The name and the entry of the best mean."""
    sign = 1 if score.better == "lower" else -1
    return min(found.items(), key=lambda item: sign * item[1].mean)


def comparable(scores: AllScores) -> tuple[AllScores, ScoreDefinition]:
    """The records on the features, the reference and as many images as the first, and the score that decides there."""
    first = next(iter(scores.values()), None)
    if first is None:
        return {}, by_key("fd")
    alike = {name: record for name, record in scores.items() if _made_alike(record) == _made_alike(first)}
    return alike, by_key(first.decided_by)


def of_one_measure(scores: AllScores) -> AllScores:
    """The records on the features and the reference of the first."""
    first = next(iter(scores.values()), None)
    return {name: record for name, record in scores.items() if first and _measure(record) == _measure(first)}


def _measure(record: SamplerScores) -> tuple[object, ...]:
    return record.features, record.features_key, record.reference


def _made_alike(record: SamplerScores) -> tuple[object, ...]:
    """What scores that are set beside each other have in common."""
    return *_measure(record), record.decided_by, tuple(part.images for part in record.ranges)


def _shifted(shifts: Shifts) -> str:
    """Whose norm gap shows a shift, and on which side."""
    sides: dict[Side, list[str]] = {}
    for name, record in shifts.items():
        side, gap, null = record.side, record.shift.mean_norm_gap, record.shift.mean_norm_gap_null
        shown = side in ("noisier", "cleaner")
        sides.setdefault(side, []).append(f"{name} ({gap.value:+.3f} nats, {_null(null)})" if shown else name)
    words: Mapping[Side, str] = {
        "noisier": "the network finds more noise than it is told in the states of",
        "cleaner": "the network finds less noise than it is told in the states of",
        "none": "no norm gap is shown for",
        "hidden": "the network hardly sees how large its states are, so that the norm gap says nothing of",
    }
    text = "; ".join(f"{said} {listed(sides[side])}" for side, said in words.items() if side in sides)
    return f"{text[0].upper()}{text[1:]}." if text else ""


def opposed(shifts: Shifts) -> str:
    """Whose norm gap and variance ratio lie on opposite sides, and how both can be true."""
    found: dict[Side, list[str]] = {}
    for name, record in shifts.items():
        ratio, null = record.shift.mean_log_variance_ratio, record.shift.mean_log_variance_ratio_null
        if OPPOSITE.get(record.side) == side_of(ratio, null):
            found.setdefault(record.side, []).append(name)
    ends = {
        "noisier": ("below", "above", "lost contrast and look noisier"),
        "cleaner": ("above", "below", "gained contrast and look cleaner"),
    }
    said = [
        f"The variance ratio of {listed(names)} lies {ends[side][0]} its null, though the norm gap is {ends[side][1]} "
        "its own. Both can be true: they are means over levels, and where little noise is left most variance is the "
        "image's and most noise that is found is in its finest parts, so that states can have "
        f"{ends[side][2]}. The report's curves by level and band say where."
        for side, names in found.items()
    ]
    return " ".join(said)


OPPOSITE: Mapping[Side, Side] = {"noisier": "cleaner", "cleaner": "noisier"}


def _null(null: Number) -> str:
    return f"null {null.value:+.3f}"


def listed(names: Sequence[str]) -> str:
    """Names in a sentence."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def glance(scores: AllScores, shifts: Shifts) -> list[Block]:
    """Shifts and scores of all samplers on shared axes, and how readings can seem to contradict each other."""
    figures = [*(_shift_figures(shifts) if shifts else ()), *front_figure(scores)]
    explained = [Paragraph(text)] if (text := opposed(shifts)) else []
    return [OnPage([Heading("At a glance"), *explained, *figures])] if figures else []


def _shift_figures(shifts: Shifts) -> list[Curves]:
    """Norm gap, variance ratio and nearest level."""
    readings: tuple[tuple[str, str, float, str, Callable[[Shift], tuple[Curve, Curve]]], ...] = (
        ("Norm gap", "norm gap, nats", 0.0, "Above its null the network finds more noise than it is told.",
         lambda s: (s.norm_gap, s.norm_gap_null)),
        ("Variance ratio", "variance over its nominal value", 1.0, "Below its null the states have lost variance.",
         lambda s: (s.variance_ratio, s.variance_ratio_null)),
        ("Nearest level", "nearest level less nominal, nats", 0.0, "Negative where states are noisier than told.",
         lambda s: (s.nearest, s.nearest_null)),
    )  # fmt: skip
    return [
        Curves(title, f"{says} {BAND}", LOGSNR, label, _series(shifts, {n: of(r.shift) for n, r in shifts.items()}), at)
        for title, label, at, says, of in readings
    ]


def _series(shifts: Shifts, curves: Mapping[str, tuple[Curve, Curve]]) -> tuple[Series, ...]:
    return tuple(
        Series(name, *(_points(shifts[name].shift.logsnr, curve) for curve in pair)) for name, pair in curves.items()
    )


def _points(logsnr: Sequence[float], curve: Curve) -> tuple[Point, ...]:
    found = (Point(*values) for values in zip(logsnr, curve.value, curve.low, curve.high, strict=True))
    return tuple(sorted(found, key=lambda point: point.x))


def band_figures(shifts: Shifts) -> list[Block]:
    """The variance ratio of every Haar band, all samplers on shared axes."""
    parts = list(dict.fromkeys(p for r in shifts.values() for p in r.shift.part_ratio if not p.startswith("ring")))
    figures = []
    for part in parts:
        pairs = {
            name: (record.shift.part_ratio[part], record.shift.part_ratio_null[part])
            for name, record in shifts.items()
            if part in record.shift.part_ratio and part in record.shift.part_ratio_null
        }
        says = f"Haar band {part}: {BANDS.get(part, 'a part of the image')}. {BAND}"
        series = _series(shifts, pairs)
        figures.append(Curves(f"Variance ratio, band {part}", says, LOGSNR, "variance ratio", series, 1.0))
    return [OnPage([Heading("Variance by band"), *figures])] if figures else []


def front_figure(scores: AllScores) -> list[Front]:
    """The score that decides against network calls for an image."""
    alike, lead = comparable(scores)
    found = {
        name: (record.nfe, record.summary[lead.key]) for name, record in alike.items() if lead.key in record.summary
    }
    names = next((record.names for record in alike.values()), {})
    return front(found, lead, names)


def front(found: Mapping[str, tuple[int, Entry]], lead: ScoreDefinition, names: Mapping[str, str]) -> list[Front]:
    """Scores with their intervals, or smallest and largest, against NFE."""
    series = tuple(
        Series(name, (Point(nfe, entry.mean, *(entry.interval or (entry.min, entry.max))),))
        for name, (nfe, entry) in found.items()
    )
    ends = "the 95 % interval" if any(e.interval for _, e in found.values()) else "the smallest and the largest range"
    says = f"{lead.head(names)}, {lead.better} is better, with {ends}; dashed: the best of these at every cost."
    cost = "NFE, network calls for an image"
    return [Front("Cost and quality", says, cost, lead.lead(names), series, lead.better)] if series else []


def forest_row(name: str, found: Difference, verdict: str) -> ForestRow:
    """A paired difference as a row; a single range has no interval."""
    low, high = (math.nan if end is None else end for end in (found.low, found.high))
    said: Literal["better", "worse", "none"] = (
        "better" if verdict == "better" else "worse" if verdict == "worse" else "none"
    )
    return ForestRow(name, found.mean, low, high, said)


def same_seeds(found: Sequence[Block], seeds: str) -> list[Block]:
    """Pictures, as snrkit sample makes them of the first of `seeds`, in one place; what else is found below them."""
    frames = [block for block in found if isinstance(block, Picture)]
    rest = [block for block in found if not isinstance(block, Picture)]
    says = (
        f"The first hundred of seeds {seeds} at most, in the same places under every sampler: choose, or click on the "
        "picture."
    )
    flip = [Flip("The same seeds side by side", says, frames)] if frames else []
    return [OnPage([*flip, *rest])] if found else []


def differences(title: str, settings: Mapping[str, Mapping[str, Any]]) -> list[Block]:
    """Where the settings of samplers, or of runs, differ: one column each, cells unlike the first stand out."""
    flat = {name: dict(_flat(content)) for name, content in settings.items()}
    keys = list(dict.fromkeys(key for content in flat.values() for key in content))
    rows = {key: [content.get(key, "-") for content in flat.values()] for key in keys}
    apart = {key: cells for key, cells in rows.items() if len(set(cells)) > 1}
    if len(flat) < 2:
        return []
    marked = frozenset(
        (line, column + 1)
        for line, cells in enumerate(apart.values())
        for column, cell in enumerate(cells)
        if cell != cells[0]
    )
    table = Table(("setting", *flat), [(key, *cells) for key, cells in apart.items()], title, marked)
    alike = ", ".join(f"{key} {cells[0]}" for key, cells in rows.items() if key not in apart)
    return [
        Heading(title),
        *([table] if apart else [Paragraph("They do not differ.")]),
        *([Paragraph(f"Alike in all: {alike}.")] if alike and len(alike) < LONGEST else []),
    ]


LONGEST = 2000  # letters of what is alike


def _flat(content: Mapping[str, Any], before: str = "") -> Iterable[tuple[str, str]]:
    for key, value in content.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{before}{key}.")
        elif isinstance(value, list | tuple) and all(isinstance(each, Mapping) for each in value):
            yield from (pair for i, each in enumerate(value) for pair in _flat(each, f"{before}{key}.{i}."))
        else:
            yield f"{before}{key}", "none" if value in (None, [], ()) else plain(value)
