"""How DCW, by score and by flow, and a constant gain differ from Euler over all models, and two further pairs of rows.

    python studies/fitted/verdicts.py > studies/fitted/verdicts.md

Paired differences over ranges of equal seeds; a star marks what is left where all rows of one line, one measure and one
kind of data are asked at once (Holm 1979). What docs/claims.md says of K4, K8 and K9 rests on this table.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

from snrkit.metrics.paired import Difference, against, holm
from snrkit.reports.blocks import Table, markdown

HERE = Path(__file__).parent
EVALUATIONS = (5, 7, 9, 13, 20)
NEAR = (0.01, 0.03)  # rms to the flow
MODELS = {"digits": ("edm-0", "edm-1", "edm-2", "flow", "ddpm"), "CIFAR-10": ("cifar10",)}
MEASURES = {"fd": (3, "FD"), "fd_infinity": (3, "FD∞"), "kid": (4, "KID"), "inception_score": (2, "IS")}
PAIRS = {  # a row and what is taken from it
    ("dcw-score", "euler"): "DCW by score",
    ("dcw-flow", "euler"): "DCW by flow",
    ("gain-flow", "euler"): "gain by flow",
    ("gain-flow", "dcw-score"): "gain by flow less DCW by score",
    ("fitted-by-band", "fitted"): "fitted by band less fitted",
}


def results(model: str) -> Mapping[str, Any]:
    """Of the rows of a model."""
    rows: Mapping[str, Any] = json.loads((HERE / f"results/{model}.json").read_text())["rows"]
    return rows


def differences(
    models: Sequence[str], pair: tuple[str, str], measure: str
) -> tuple[dict[tuple[str, int], Difference], int]:
    """(Of a row less another by model and evaluations, where both have the measure; ranges)."""
    found, ranges = {}, 0
    for model in models:
        rows = results(model)
        for count in EVALUATIONS:
            sides = [[part.get(measure) for part in rows[f"{name}-{count}"]["ranges"]] for name in pair]
            if None not in sides[0] and None not in sides[1]:
                found[model, count], ranges = against(*sides), len(sides[0])
    return found, ranges


def lines(found: Mapping[tuple[str, int], Difference], ranges: int, digits: int) -> Iterator[Sequence[str]]:
    """A row a model."""
    sure = holm({f"{model} {count}": each for (model, count), each in found.items()}, ranges)
    for model in dict.fromkeys(model for model, _ in found):
        cells = []
        for count in EVALUATIONS:
            each, star = found[model, count], " *" if f"{model} {count}" in sure else ""
            cells.append(f"{each.mean:+.{digits}f} [{each.low:+.{digits}f}, {each.high:+.{digits}f}]{star}")
        yield model, *cells


def tables_of_dcw() -> str:
    """How often a table of DCW is farther from the flow than one coefficient for all steps."""
    rows = [(results(model), count) for models in MODELS.values() for model in models for count in EVALUATIONS]
    far = [[of[f"{name}-{n}"]["flow"]["distance"]["value"] for name in ("dcw-table", "dcw-flow")] for of, n in rows]
    return (
        "A table of DCW, found step by step, is farther from the flow than one coefficient by flow in "
        f"{sum(table > one for table, one in far)} of {len(far)} cases."
    )


def told_apart(model: str, bound: float) -> list[str]:
    """By measure: of how many pairs of samplers, both nearer to the flow than `bound`, an interval clears 0."""
    rows, cells = results(model), []
    near = [row for row in rows.values() if row.get("flow") and row["flow"]["distance"]["value"] < bound]
    for measure in MEASURES:
        values = [[part.get(measure) for part in row["ranges"]] for row in near]
        known = [of for of in values if None not in of]
        found = [against(one, other) for one, other in combinations(known, 2) if one != other]
        cells.append(f"{sum(each.low > 0 or each.high < 0 for each in found)} of {len(found)}")
    return cells


def nearest() -> Iterator[str]:
    """Whether scores tell samplers apart that are near to the flow."""
    yield "## Pairs of samplers that are told apart, by how near both are to the flow"
    yield "One in twenty is what chance tells apart; pairs of equal images are left out."
    head = ("model", "nearer than", *(title for _, title in MEASURES.values()))
    lines = [(m, f"{bound}", *told_apart(m, bound)) for models in MODELS.values() for m in models for bound in NEAR]
    yield markdown(Table(head, lines), Path())


def page() -> Iterator[str]:
    """All tables."""
    yield "# Differences from Euler, and what is left of them"
    yield tables_of_dcw()
    yield "Paired 95 % intervals; a star: left by Holm's correction within the table."
    for data, models in MODELS.items():
        for pair, said in PAIRS.items():
            for measure, (digits, title) in MEASURES.items():
                found, ranges = differences(models, pair, measure)
                if found:
                    yield f"## {said}, {title}, {data}"
                    head = ("model", *(f"{count} evaluations" for count in EVALUATIONS))
                    yield markdown(Table(head, [tuple(line) for line in lines(found, ranges, digits)]), Path())
    yield from nearest()


if __name__ == "__main__":
    print("\n\n".join(page()))
