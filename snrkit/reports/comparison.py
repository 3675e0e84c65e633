"""The page of `snrkit compare`: one table, rows of equal cost together."""

import math
from collections.abc import Mapping
from typing import Any

from snrkit.base.files import write_text
from snrkit.experiment.run import Run
from snrkit.reports.blocks import Block, Heading, Paragraph, Row, Table, as_html, markdown, mean_of, page, short, spread
from snrkit.sampling.sampler import Sampler


def comparison_rows(record: Mapping[str, Any]) -> tuple[Row, list[Row]]:
    """(header, rows) of what snrkit compare found."""
    names = record["names"]
    header: Row = (
        "sampler", "what", "NFE", f"{names['fd']} (min, max)", names["kid"], names["is"], f"{names['fd']} minus base's",
        "verdict", "norm gap (null)", "ln variance ratio (null)", "nearest level (null)", "ms/image", "overhead",
    )  # fmt: skip
    rows: list[Row] = []
    for row in record["rows"]:
        summary, difference = row["summary"], row.get("difference", {}).get("fd")
        rows.append((
            row["name"], _what(row), str(row["nfe"]), spread(summary.get("fd"), 4), mean_of(summary.get("kid"), 5),
            mean_of(summary.get("inception_score"), 3), "-" if difference is None else _difference(difference),
            _against(row),
            *(_read(row[key]) for key in ("mean_norm_gap", "mean_log_variance_ratio", "mean_nearest")),
            f"{1000 * row['seconds_per_image']:.2f}", "-" if row["base"] is None else f"{row['overhead']:+.1%}",
        ))  # fmt: skip
    return header, rows


def _what(row: Mapping[str, Any]) -> str:
    sampler = Sampler.model_validate(row["definition"])
    corrections = "".join(f", {short(c)}" for c in sampler.corrections)
    return f"{short(sampler.solver)}, {short(sampler.grid, first='steps')}{corrections}"


def _against(row: Mapping[str, Any]) -> str:
    if row["base"] is None:
        return "-"
    link = "than" if row["verdict"] in ("better", "worse") else "from" if "shown" in row["verdict"] else "beside"
    return f"{row['verdict']} {link} {row['base']}"


def shift_rows(record: Mapping[str, Any]) -> tuple[Row, list[Row]]:
    """(header, rows): how the size of each row's shift compares with that of its base's."""
    header: Row = ("sampler", "base", "norm gap", "ln variance ratio", "nearest level")
    rows: list[Row] = [
        (row["name"], row["base"], *(_change(change) for change in row["shift_change"].values()))
        for row in record["rows"]
        if row["base"] is not None
    ]
    return header, rows


def _change(entry: Mapping[str, Any] | None) -> str:
    return "-" if entry is None else f"{entry['base']:.3f} to {entry['row']:.3f}, {entry['verdict']}"


def _difference(entry: Mapping[str, float | None]) -> str:
    if entry["low"] is None:
        return f"{entry['mean']:+.4f}"
    return f"{entry['mean']:+.4f} [{entry['low']:+.4f}, {entry['high']:+.4f}]"


def _read(entry: Mapping[str, Any]) -> str:
    values = [entry["value"], entry["null"]["value"]]
    return "-" if None in values or any(math.isnan(v) for v in values) else f"{values[0]:+.3f} ({values[1]:+.3f})"


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


def chance(record: Mapping[str, Any]) -> str:
    """How many verdicts chance alone would give, and how little few ranges say."""
    count = sum(row["base"] is not None for row in record["rows"])
    text = f"If none of the {count} rows with a base differed from it, about {0.05 * count:.1f} would still seem to."
    few = " Fewer than four ranges make intervals wide and fragile." if record["ranges"] < 4 else ""
    return text + few


def comparison_page(run: Run, record: Mapping[str, Any]) -> None:
    """Write compare.md and compare.html."""
    header, rows = comparison_rows(record)
    facts = (
        f"{record['ranges']} ranges of {record['images_a_range']} images each (seeds {record['seeds']}), weights "
        f"{record['weights']} at {record['checkpoint_images']:,} images, features {record['features']}, reference: "
        f"{record['reference']}."
    )
    header_of_shifts, shifts = shift_rows(record)
    of_shifts: list[Block] = [
        Heading("Size of the shift", 2), Paragraph(SHIFT_GUIDE), Table(header_of_shifts, shifts)
    ]  # fmt: skip
    blocks: list[Block] = [
        Heading(f"{run.path.name}: samplers compared", 1), Paragraph(facts), Table(header, rows),
        *[Paragraph(text) for text in (*COMPARISON_GUIDE, chance(record))], *(of_shifts if shifts else []),
        *[Paragraph(f"Warning: {w}") for w in record["warnings"]],
    ]  # fmt: skip
    write_text(run.comparison(".md"), "\n\n".join(markdown(block, run.path) for block in blocks) + "\n")
    write_text(run.comparison(".html"), page(run.path.name, [as_html(block) for block in blocks]))
