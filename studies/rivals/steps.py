"""Guidance at equal steps, at twice the cost: python studies/rivals/steps.py RUN, after its snrkit compare.

Rows of seven guided steps less Euler's seven without guidance, range by range on equal seeds.
"""

import sys
from collections.abc import Mapping
from pathlib import Path

from snrkit.base.records import read_record
from snrkit.commands.compare import Kept, difference
from snrkit.experiment.run import Run
from snrkit.metrics.paired import Difference, holm
from snrkit.metrics.scores import by_key
from snrkit.reports.blocks import Table, interval, markdown

BASE = "euler-7"
GUIDED = ("perturbed-attention", "perturbed-attention-all", "cfg", "fdg", "apg", "cfg-zero-star", "noise-awareness")
SCORES = ("fd", "kid", "inception_score")


def main(run: Run) -> str:
    """Markdown: what each kind of guidance changes at equal steps."""
    kept = {name: read_record(Kept, run.compared(name)).score for name in (BASE, *GUIDED)}
    titles = [by_key(key).head(kept[BASE].names) for key in SCORES]
    less = {key: {name: difference(kept[name], kept[BASE], key) for name in GUIDED} for key in SCORES}
    rows = [(name, *(interval(less[key][name], by_key(key).digits) for key in SCORES)) for name in GUIDED]
    left = [f"by {title} {_left(less[key], len(kept[BASE].ranges))}" for key, title in zip(SCORES, titles, strict=True)]
    made = markdown(Table(("seven guided steps", *(f"{title} less {BASE}'s" for title in titles)), rows), Path())
    return f"{made}\n\nHolm's correction over the {len(GUIDED)} rows leaves {', '.join(left)}."


def _left(differences: Mapping[str, Difference | None], ranges: int) -> str:
    """The rows that differ from the base where all are asked at once."""
    return " and ".join(holm({name: each for name, each in differences.items() if each is not None}, ranges)) or "none"


if __name__ == "__main__":
    print(main(Run(Path(sys.argv[1]))))
