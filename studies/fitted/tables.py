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


def page() -> Iterator[str]:
    """All tables of all models."""
    yield "# Tables of the study of fitted steps"
    head = ("row", *(f"{count} evaluations" for count in EVALUATIONS))
    for path in sorted((HERE / "results").glob("*.json")):
        found = json.loads(path.read_text())
        yield f"## {found['model']}"
        yield "rms distance to the flow [95 %], and the variance of the images over the flow's:"
        yield table(head, distances(found["rows"]))
        for key in SCORES:
            yield f"{key}, mean over ranges (paired difference to Euler [95 %]):"
            yield table(head, scores(found["rows"], key))
        yield "Coefficients of DCW in pixels:"
        yield table(head, coefficients(found["tuned"]))


if __name__ == "__main__":
    print("\n\n".join(page()))
