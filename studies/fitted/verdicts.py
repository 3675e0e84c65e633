"""How DCW, by score and by flow, and a constant gain differ from Euler over all models, as tables.

    python studies/fitted/verdicts.py > studies/fitted/verdicts.md

Paired differences over ranges of equal seeds; a star marks what is left where all rows of one line, one measure and one
kind of data are asked at once (Holm 1979). What docs/claims.md says of K4, K8 and K9 rests on this table.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from snrkit.metrics.paired import Difference, against, holm
from snrkit.reports.blocks import Table, markdown

HERE = Path(__file__).parent
EVALUATIONS = (5, 7, 9, 13, 20)
MODELS = {"digits": ("edm-0", "edm-1", "edm-2", "flow", "ddpm"), "CIFAR-10": ("cifar10",)}
MEASURES = {"fd": (3, "FD"), "fd_infinity": (3, "FD∞"), "kid": (4, "KID"), "inception_score": (2, "IS")}
ROWS = {"dcw-score": "DCW by score", "dcw-flow": "DCW by flow", "gain-flow": "gain by flow"}


def differences(models: Sequence[str], row: str, measure: str) -> tuple[dict[tuple[str, int], Difference], int]:
    """(Of a row less Euler by model and evaluations, where both have the measure; ranges)."""
    found, ranges = {}, 0
    for model in models:
        rows = json.loads((HERE / f"results/{model}.json").read_text())["rows"]
        for count in EVALUATIONS:
            sides = [[part.get(measure) for part in rows[f"{name}-{count}"]["ranges"]] for name in (row, "euler")]
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


def page() -> Iterator[str]:
    """All tables."""
    yield "# Differences from Euler, and what is left of them"
    yield "Paired 95 % intervals; a star: left by Holm's correction within the table."
    for data, models in MODELS.items():
        for row, said in ROWS.items():
            for measure, (digits, title) in MEASURES.items():
                found, ranges = differences(models, row, measure)
                if found:
                    yield f"## {said}, {title}, {data}"
                    head = ("model", *(f"{count} evaluations" for count in EVALUATIONS))
                    yield markdown(Table(head, [tuple(line) for line in lines(found, ranges, digits)]), Path())


if __name__ == "__main__":
    print("\n\n".join(page()))
