"""The page studies/fitted/tables.md, from studies/fitted/results: python studies/fitted/tables.py > the page."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from snrkit.metrics.paired import against
from snrkit.reports.blocks import Table, markdown

HERE = Path(__file__).parent
EVALUATIONS = (5, 7, 9, 13, 20)
ROWS = (
    "euler", "gain-flow", "dcw-score", "dcw-predicted", "dcw-flow", "dcw-table", "ipndm", "unipc", "dpmpp-3m", "fitted",
    "fitted-by-band", "designed",
)  # fmt: skip
PUBLISHED = ("euler", "ipndm", "unipc", "dpmpp-3m")
SCORES = {"fd": 3, "fd_infinity": 3, "kid": 5}


def table(head: Sequence[str], rows: Iterator[Sequence[str]]) -> str:
    """Markdown."""
    return markdown(Table(tuple(head), list(map(tuple, rows))), Path())


def distances(rows: Mapping[str, Any]) -> Iterator[Sequence[str]]:
    """rms to the flow with its interval, and the variance over the flow's, by evaluations."""
    for name in ROWS:
        found = [rows[f"{name}-{count}"]["flow"] for count in EVALUATIONS]
        yield name, *(f"{number(f['distance'])}, {f['variance']:.3f}" for f in found)


def number(found: Mapping[str, float]) -> str:
    """With its interval."""
    return f"{found['value']:.4f} [{found['low']:.4f}, {found['high']:.4f}]"


def scores(rows: Mapping[str, Any], key: str) -> Iterator[Sequence[str]]:
    """A score of each row, and its paired difference to Euler over ranges of equal seeds."""
    for name in ROWS:
        cells = []
        for count in EVALUATIONS:
            values, base = ([part[key] for part in rows[f"{row}-{count}"]["ranges"]] for row in (name, "euler"))
            if None in values or None in base:
                cells.append("-")
                continue
            mean, less = sum(values) / len(values), against(values, base)
            paired = "" if name == "euler" else f" ({less.mean:+.{SCORES[key]}f} [{less.low:+.3f}, {less.high:+.3f}])"
            cells.append(f"{mean:.{SCORES[key]}f}{paired}")
        yield name, *cells


def coefficients(tuned: Mapping[str, Any]) -> Iterator[Sequence[str]]:
    """DCW's coefficient by evaluations: by score, predicted, and by flow with its interval."""
    for how, method in (("dcw-score", "fd"), ("dcw-predicted", "predicted"), ("dcw-flow", "flow")):
        cells = []
        for count in EVALUATIONS:
            found = tuned[f"{how}-{count}"][method]
            if found.get("flow"):
                cells.append(number(found["flow"]["values"][0]))
            else:
                cells.append(f"{found['values'][0]:.4f}")
        yield how, *cells


def guided(found: Mapping[str, Any]) -> Iterator[Sequence[str]]:
    """Shift, distance and scores of every row, scores with their paired difference to the plain row of equal weight."""
    for name, row in found["rows"].items():
        how, weight = name.split("-")
        plain, cells = found["rows"].get(f"plain-{weight}"), []
        for key, digits in SCORES.items():
            values = [part[key] for part in row["ranges"]]
            cell = f"{sum(values) / len(values):.{digits}f}"
            if how != "plain" and plain is not None:
                less = against(values, [part[key] for part in plain["ranges"]])
                cell += f" ({less.mean:+.{digits}f} [{less.low:+.{digits}f}, {less.high:+.{digits}f}])"
            cells.append(cell)
        shares = (row["why"]["norm_gap"][f"mean_{whose}"] for whose in ("network", "solver"))
        yield how, weight, number(row["mean_norm_gap"]), *map(number, shares), number(row["flow"]["distance"]), *cells


def guidance(found: Mapping[str, Any]) -> Iterator[str]:
    """The tables of the part on guidance."""
    yield "## Guidance: Euler with 13 steps on edm-0"
    null = number(next(iter(found["rows"].values()))["mean_norm_gap_null"])
    yield f"Seeds 0-1999; the norm gap's null is {null}; scores with paired differences to plain at equal weight:"
    head = ("row", "weight", "norm gap", "the network's share", "the solver's", "rms to the flow", *SCORES)
    yield table(head, guided(found))
    yield "Coefficients of DCW by flow, and KID on the seeds that choose a weight:"
    rows = (
        (w, number(t["values"][0]), *(f"{found['selection_kid'][f'{how}-{w}']:.5f}" for how in ("plain", "dcw")))
        for w, t in found["tuned"].items()
    )
    yield table(("weight", "coefficient", "KID of plain", "KID with DCW"), rows)
    best = found["best"]
    ranges = [[part["kid"] for part in found["rows"][f"{how}-{best[how]}"]["ranges"]] for how in ("dcw", "plain")]
    less = against(*ranges)
    yield (
        f"Each at its own best weight (plain {best['plain']}, with DCW {best['dcw']}): KID {less.mean:+.5f} "
        f"[{less.low:+.5f}, {less.high:+.5f}] with DCW."
    )


def page() -> Iterator[str]:
    """All tables of all models."""
    yield "# Tables of the study of fitted steps"
    head = ("row", *(f"{count} evaluations" for count in EVALUATIONS))
    for path in sorted((HERE / "results").glob("*.json"), key=lambda path: path.stem):
        found = json.loads(path.read_text())
        if path.stem.endswith("-whole"):
            yield "fd_infinity of all images at once [95 %], which is not paired:"
            values = found["fd_infinity"]
            yield table(head, ((row, *(number(values[f"{row}-{count}"]) for count in EVALUATIONS)) for row in ROWS))
            continue
        if path.stem == "guidance":
            yield from guidance(found)
            continue
        yield f"## {found['model']}"
        yield "rms distance to the flow [95 %], and the variance of the images over the flow's:"
        yield table(head, distances(found["rows"]))
        known = found["rows"]["euler-5"]["ranges"][0]
        for key in (key for key in SCORES if known[key] is not None):
            yield f"{key}, mean over ranges (paired difference to Euler [95 %]):"
            yield table(head, scores(found["rows"], key))
        yield "Coefficients of DCW in pixels:"
        yield table(head, coefficients(found["tuned"]))


if __name__ == "__main__":
    print("\n\n".join(page()))
