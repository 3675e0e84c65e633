"""The page of `snrkit compare`: one table, rows of equal cost together."""

import math
from collections.abc import Mapping
from dataclasses import replace

from snrkit.base.files import write_text
from snrkit.experiment.run import Run
from snrkit.metrics.paired import Verdict as Said
from snrkit.metrics.scores import Columns, ScoreDefinition, by_key, columns
from snrkit.reports.blocks import (
    Block,
    Heading,
    OnPage,
    Paragraph,
    Row,
    Table,
    Verdict,
    cell,
    document,
    grid_of,
    interval,
    leading,
    pictures,
    short,
    weights_at,
)
from snrkit.reports.citing import citation, repeated
from snrkit.reports.page import page
from snrkit.reports.plots import Forest, ForestRow
from snrkit.reports.records import Beside, Comparison, ComparisonRow, SizeChange, WithNull
from snrkit.reports.run_figures import best_of, differences, forest_row, front, listed, same_seeds
from snrkit.sampling.sampler import Sampler


def comparison_rows(record: Comparison) -> tuple[Row, list[Row]]:
    """(header, rows) of what snrkit compare found: what decides, the shift, other scores, times and definitions."""
    scores, names, first = score_columns(record), record.names, by_key(record.decided_by)
    timed = any(row.seconds_per_image is not None for row in record.rows)
    header: Row = (
        *("sampler", "NFE", first.lead(names), f"{first.head(names)} minus base's", "verdict"),
        *("norm gap (null)", "ln variance ratio (null)", "nearest level (null)"),
        *(score.head(names) for score in (*scores.standing, *scores.others)),
        *(("ms/image", "overhead") if timed else ()),
        "what",
    )
    rows: list[Row] = [
        (
            *(row.name, str(row.nfe), leading(row.summary.get(first.key), first), _difference(row, first)),
            _against(row),
            *(_read(reading) for reading in (row.mean_norm_gap, row.mean_log_variance_ratio, row.mean_nearest)),
            *(cell(row.summary.get(score.key), score) for score in (*scores.standing, *scores.others)),
            *(times(row) if timed else ()),
            _what(row),
        )
        for row in record.rows
    ]
    return header, rows


def score_columns(record: Comparison) -> Columns:
    """As metrics.scores has them, distances first."""
    found = columns("compare", [row.summary for row in record.rows], by_key(record.decided_by))
    return replace(found, standing=tuple(sorted(found.standing, key=lambda score: score.better == "higher")))


def _difference(row: ComparisonRow, score: ScoreDefinition) -> str:
    return "-" if row.beside is None else interval(row.beside.difference.get(score.key), score.digits)


def times(row: ComparisonRow) -> tuple[str, str]:
    """(milliseconds per image, overhead against the base); dashes where nothing was timed."""
    taken, more = row.seconds_per_image, None if row.beside is None else row.beside.overhead
    return "-" if taken is None else f"{1000 * taken:.2f}", "-" if more is None else f"{more:+.1%}"


def _what(row: ComparisonRow) -> str:
    sampler = Sampler.model_validate(row.definition)
    corrections = "".join(f", {short(c)}" for c in sampler.corrections)
    return f"{short(sampler.solver)}, {grid_of(sampler)}{corrections}"


def _against(row: ComparisonRow) -> str:
    if row.beside is None:
        return "-"
    found = row.beside.verdict
    return f"{found} {LINKS[found]} {row.base}"


LINKS: Mapping[Said, str] = {
    "better": "than",
    "worse": "than",
    "equal within the margin": "to",
    "no difference shown": "from",
    "one range: no interval": "beside",
    "too few images": "to tell it from",
}


def difference_rows(record: Comparison) -> tuple[Row, list[Row]]:
    """(header, rows): how the scores beside the first differ from the base's, where both have them."""
    pairs = [(row, row.beside) for row in record.rows if row.beside is not None]
    scores = [s for s in score_columns(record).every if any(s.key in beside.difference for _, beside in pairs)]
    header: Row = ("sampler", "base", *(score.head(record.names) for score in scores))
    rows: list[Row] = [(row.name, str(row.base), *(_told(beside, score) for score in scores)) for row, beside in pairs]
    return header, rows if scores else []


def _told(beside: Beside, score: ScoreDefinition) -> str:
    said = beside.said(score)
    return "-" if said is None else f"{interval(beside.difference[score.key], score.digits)}, {said}"


def shift_rows(record: Comparison) -> tuple[Row, list[Row]]:
    """(header, rows): how the size of each row's shift compares with that of its base's."""
    header: Row = ("sampler", "base", "norm gap", "ln variance ratio", "nearest level")
    rows: list[Row] = [
        (row.name, str(row.base), *(_change(change) for change in row.beside.shift_change.values()))
        for row in record.rows
        if row.beside is not None
    ]
    return header, rows


def _change(entry: SizeChange | None) -> str:
    return "-" if entry is None else f"{entry.base:.3f} to {entry.row:.3f}, {entry.verdict}"


def _read(entry: WithNull) -> str:
    values = [entry.reading.value, entry.null.value]
    return "-" if any(math.isnan(v) for v in values) else f"{values[0]:+.3f} ({values[1]:+.3f})"


COMPARISON_GUIDE = (
    "Rows of one NFE cost the same number of network calls. A row with corrections is compared with its base: the same "
    "solver on the same grid without corrections, with as many steps as its NFE allows (one evaluation more where it "
    "has only odd costs), or the row that compare.bases names. A row without corrections is compared with the first "
    "such row of its NFE. The difference is over ranges of equal seeds, with a paired 95 % t-interval; better and "
    "worse mean that the interval clears 0. Ranges share the network and the reference: intervals say nothing of "
    "another training or of other images.",
    "Norm gap, ln variance ratio and nearest level are means over levels as in the report, each with its null. Neither "
    "what an estimator of levels costs nor what statistics on training images cost is in the NFE.",
)
TIMES_GUIDE = "Times are medians of interleaved batches on one machine; overhead is against the base."
SHIFT_GUIDE = (
    "The size of a shift is a root mean square over levels, in nats, with its own noise taken out: of the norm gap, "
    "and of ln variance ratio and nearest level less their nulls. From the base to the row; smaller and larger mean "
    "that the interval of the difference of mean squares, from resamples that both share, clears 0, whatever happened "
    "to the scores. No comparison (-) where guidance changes the number of steps and with it the levels."
)


DIFFERENCE_GUIDE = (
    "Of a row less its base, over ranges of equal seeds, with paired 95 % t-intervals. Better and worse mean that the "
    "interval clears 0, on the side that is better or worse for this score; one in twenty would by chance alone."
)


def chance(record: Comparison) -> str:
    """What chance alone would give, what is left where all rows are asked at once, and how little few ranges say."""
    count = len(record.differences)
    text = f"If none of the {count} rows with a base differed from it, about {0.05 * count:.1f} would still seem to."
    text = text if count else ""
    few = "Fewer than four ranges make intervals wide and fragile." if record.ranges < 4 else ""
    return " ".join(part for part in (text, record.together, few) if part)


def contradictions(record: Comparison) -> str:
    """What other distances show where the one that decides shows the opposite, or cannot tell; nothing where none does.

    Scores of which more is better are not asked: precision against recall, or IS against FD, is a trade and no quarrel.
    """
    others = [score for score in score_columns(record).every if score.better == "lower"]
    lead = by_key(record.decided_by).head(record.names)
    said: dict[str, list[str]] = {}
    for row, beside in ((row, row.beside) for row in record.rows if row.beside is not None):
        for score in others:
            shown = beside.said(score)
            if shown is None or shown not in OPPOSITE:
                continue
            quarrels = {
                OPPOSITE[
                    shown
                ]: f"says {OPPOSITE[shown]} (distances weigh features differently, and both can be right)",
                "too few images": "cannot tell",
            }
            if (how := quarrels.get(beside.verdict)) is not None:
                said.setdefault(f"By {score.head(record.names)}, {shown}, where {lead} {how}", []).append(row.name)
    return " ".join(f"{words}: {', '.join(names)}." for words, names in said.items())


OPPOSITE: Mapping[Said, Said] = {"better": "worse", "worse": "better"}


def _guides(record: Comparison) -> list[str]:
    """What is to be said of times and of a margin, where there are any."""
    found = [TIMES_GUIDE] if any(row.seconds_per_image is not None for row in record.rows) else []
    if record.margin is not None:
        found.append(
            f"Equal within the margin: the whole interval lies within {record.margin:g} of 0, the margin that "
            "compare.margin states, and holds 0. Each such verdict is one test, not corrected for their number."
        )
    return found


def comparison_page(run: Run, record: Comparison) -> None:
    """Write compare.md and compare.html."""
    facts = (
        f"{record.ranges} ranges of {record.images_a_range} images each (seeds {record.seeds}), weights "
        f"{weights_at(record.weights, record.checkpoint_images)}, features {record.features}, reference: "
        f"{record.reference}. Verdicts go by {by_key(record.decided_by).head(record.names)}, as metrics.decide says."
    )
    samples = pictures([run.compared_samples(f"{row.name}.png") for row in record.rows], run.path, samples=True)
    blocks: list[Block] = [
        Heading(f"{run.path.name}: samplers compared", 1),
        OnPage([_verdict(record)]),
        *[Paragraph(text) for text in [contradictions(record)] if text],
        *[Paragraph(f"Warning: {w}") for w in record.warnings],
        OnPage([Heading("At a glance"), *_figures(record)]),
        *same_seeds(samples, record.seeds),
        Paragraph(facts),
        Table(*comparison_rows(record), "Samplers compared"),
        *[Paragraph(text) for text in (*COMPARISON_GUIDE, *_guides(record), chance(record))],
        OnPage(differences("How the samplers differ", {row.name: row.definition for row in record.rows})),
        *_section("Size of the shift", SHIFT_GUIDE, Table(*shift_rows(record), "Size of the shift")),
        *_section("Differences of the other scores", DIFFERENCE_GUIDE, Table(*difference_rows(record), "Differences")),
        *citation(repeated("compare", run), _made_with(record)),
    ]
    write_text(run.comparison(".md"), document(blocks, run.path))
    write_text(run.comparison(".html"), page(f"{run.path.name}: samplers compared", blocks))


def _made_with(record: Comparison) -> str:
    return f"Made with {', '.join(f'{name} {version}' for name, version in record.made_with.items())}."


def _verdict(record: Comparison) -> Verdict:
    """Which rows differ from their bases, and which is best."""
    score = by_key(record.decided_by)
    found = {row.name: row.summary[score.key] for row in record.rows if score.key in row.summary}
    said = {row.name: _against(row) for row in record.rows if row.beside is not None}
    shown = [
        f"{row.name} is {said[row.name]}, {_difference(row, score)}"
        for row in record.rows
        if said.get(row.name, "").startswith(("better", "worse"))
    ]
    equal = [name for name, words in said.items() if words.startswith("equal")]
    few = [name for name, words in said.items() if words.startswith("too few")]
    open_ = [name for name, words in said.items() if not words.startswith(("better", "worse", "equal", "too few"))]
    parts = [f"By {score.head(record.names)}, {'; '.join(shown)}." if shown else ""]
    parts.append(f"Equal to its base within {record.margin:g}: {listed(equal)}." if equal else "")
    parts.append(f"No difference from its base is shown for {listed(open_)}." if open_ else "")
    if few:
        parts.append(
            f"{record.images_a_range} images of a range are too few for {score.head(record.names)} to tell "
            f"{listed(few)} from their bases: make more, or let another score decide (metrics.decide: kid)."
        )
    elif found:
        best, entry = best_of(found, score)
        nfe = next(row.nfe for row in record.rows if row.name == best)
        parts.append(f"{best} has the best mean, {entry.mean:.{score.digits}f} at {nfe} evaluations of the network.")
    parts.append(record.together)
    return Verdict(" ".join(part for part in parts if part))


def _figures(record: Comparison) -> list[Block]:
    """Paired differences, mean norm gaps with their nulls, and the scores against NFE."""
    score, head = by_key(record.decided_by), by_key(record.decided_by).head(record.names)
    pairs = [(row, row.beside) for row in record.rows if row.beside is not None]
    rows = [
        forest_row(f"{row.name} less {row.base}", beside.difference[score.key], beside.verdict)
        for row, beside in pairs
        if score.key in beside.difference
    ]
    side = "left" if score.better == "lower" else "right"
    says = (
        f"Paired differences of {head} over ranges of equal seeds, with 95 % intervals; better lies to the {side}. "
        "Green circles are better, red squares worse; hollow where no difference is shown."
    )
    gaps = tuple(_gap_row(row) for row in record.rows)
    differing = Forest("Paired differences", says, f"{head}, row less base", tuple(rows))
    says_of_gaps = "Means over levels with their intervals; grey: the interval of each one's null."
    shift = Forest("Mean norm gap", says_of_gaps, "norm gap, nats", gaps)
    scored = {row.name: (row.nfe, row.summary[score.key]) for row in record.rows if score.key in row.summary}
    return [*([differing] if rows else []), shift, *front(scored, score, record.names)]


def _gap_row(row: ComparisonRow) -> ForestRow:
    number, null = row.mean_norm_gap.reading, row.mean_norm_gap.null
    return ForestRow(row.name, number.value, number.low, number.high, null=(null.low, null.high))


def _section(title: str, guide: str, table: Table) -> list[Block]:
    """A table with what it says; nothing for one without rows."""
    return [Heading(title, 2), Paragraph(guide), table] if table.rows else []
