"""The page of `snrkit compare`: one table, rows of equal cost together."""

import math
from dataclasses import replace

from snrkit.base.files import write_text
from snrkit.experiment.run import Run
from snrkit.metrics.paired import Difference, verdict
from snrkit.metrics.scores import Columns, ScoreDefinition, by_key, columns
from snrkit.reports.blocks import (
    Block,
    Heading,
    Paragraph,
    Row,
    Table,
    as_html,
    cell,
    interval,
    leading,
    markdown,
    page,
    short,
)
from snrkit.reports.records import Comparison, ComparisonRow, SizeChange, WithNull
from snrkit.sampling.sampler import Sampler


def comparison_rows(record: Comparison) -> tuple[Row, list[Row]]:
    """(header, rows) of what snrkit compare found."""
    scores, names, first = score_columns(record), record.names, by_key(record.decided_by)
    header: Row = (
        *("sampler", "what", "NFE", first.lead(names), *(score.head(names) for score in scores.standing)),
        *(
            f"{first.head(names)} minus base's",
            "verdict",
            "norm gap (null)",
            "ln variance ratio (null)",
            "nearest level (null)",
        ),
        *("ms/image", "overhead", *(score.head(names) for score in scores.others)),
    )
    rows: list[Row] = [
        (
            *(row.name, _what(row), str(row.nfe), leading(row.summary.get(first.key), first)),
            *(cell(row.summary.get(score.key), score) for score in scores.standing),
            *(_difference(row, first), _against(row)),
            *(_read(reading) for reading in (row.mean_norm_gap, row.mean_log_variance_ratio, row.mean_nearest)),
            *(f"{1000 * row.seconds_per_image:.2f}", "-" if row.beside is None else f"{row.beside.overhead:+.1%}"),
            *(cell(row.summary.get(score.key), score) for score in scores.others),
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


def _what(row: ComparisonRow) -> str:
    sampler = Sampler.model_validate(row.definition)
    corrections = "".join(f", {short(c)}" for c in sampler.corrections)
    return f"{short(sampler.solver)}, {short(sampler.grid, first='steps')}{corrections}"


def _against(row: ComparisonRow) -> str:
    if row.beside is None:
        return "-"
    found = row.beside.verdict
    link = "than" if found in ("better", "worse") else "from" if "shown" in found else "beside"
    return f"{found} {link} {row.base}"


def difference_rows(record: Comparison) -> tuple[Row, list[Row]]:
    """(header, rows): how the scores beside the first differ from the base's, where both have them."""
    pairs = [(row, row.beside.difference) for row in record.rows if row.beside is not None]
    scores = [s for s in score_columns(record).every if any(s.key in found for _, found in pairs)]
    header: Row = ("sampler", "base", *(score.head(record.names) for score in scores))
    rows: list[Row] = [
        (row.name, str(row.base), *(_told(found.get(score.key), score) for score in scores)) for row, found in pairs
    ]
    return header, rows if scores else []


def _told(found: Difference | None, score: ScoreDefinition) -> str:
    return "-" if found is None else f"{interval(found, score.digits)}, {verdict(found, score.better)}"


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
    "has only odd costs), or the row that compare.bases names. The difference is over ranges of equal seeds, with a "
    "paired 95 % t-interval; better and worse mean that the interval clears 0.",
    "Norm gap, ln variance ratio and nearest level are means over levels as in the report, each with its null. Times "
    "are medians of interleaved batches on this machine; overhead is against the base. Neither what an estimator of "
    "levels costs nor what statistics on training images cost is in the NFE.",
)
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
    """How many verdicts chance alone would give, and how little few ranges say."""
    count = sum(row.beside is not None for row in record.rows)
    text = f"If none of the {count} rows with a base differed from it, about {0.05 * count:.1f} would still seem to."
    few = " Fewer than four ranges make intervals wide and fragile." if record.ranges < 4 else ""
    return text + few


def comparison_page(run: Run, record: Comparison) -> None:
    """Write compare.md and compare.html."""
    facts = (
        f"{record.ranges} ranges of {record.images_a_range} images each (seeds {record.seeds}), weights "
        f"{record.weights} at {record.checkpoint_images:,} images, features {record.features}, reference: "
        f"{record.reference}. Verdicts go by {by_key(record.decided_by).head(record.names)}, as metrics.decide says."
    )
    blocks: list[Block] = [
        Heading(f"{run.path.name}: samplers compared", 1),
        Paragraph(facts),
        Table(*comparison_rows(record)),
        *[Paragraph(text) for text in (*COMPARISON_GUIDE, chance(record))],
        *_section("Size of the shift", SHIFT_GUIDE, Table(*shift_rows(record))),
        *_section("Differences of the other scores", DIFFERENCE_GUIDE, Table(*difference_rows(record))),
        *[Paragraph(f"Warning: {w}") for w in record.warnings],
    ]
    write_text(run.comparison(".md"), "\n\n".join(markdown(block, run.path) for block in blocks) + "\n")
    write_text(run.comparison(".html"), page(run.path.name, [as_html(block) for block in blocks]))


def _section(title: str, guide: str, table: Table) -> list[Block]:
    """A table with what it says; nothing for one without rows."""
    return [Heading(title, 2), Paragraph(guide), table] if table.rows else []
