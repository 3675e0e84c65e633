"""Guidance at equal steps, at twice the cost: python studies/rivals/steps.py RUN, after its snrkit compare.

Rows of seven guided steps less Euler's seven without guidance, range by range on equal seeds.
"""

import sys
from pathlib import Path

from snrkit.base.records import read_record
from snrkit.commands.compare import Kept
from snrkit.experiment.run import Run
from snrkit.metrics.paired import against
from snrkit.metrics.records import SamplerScores
from snrkit.metrics.scores import by_key
from snrkit.reports.blocks import Table, interval, markdown

BASE = "euler-7"
GUIDED = ("perturbed-attention", "perturbed-attention-all", "cfg", "fdg", "apg", "cfg-zero-star", "noise-awareness")
SCORES = ("fd", "kid", "inception_score")


def main(run: Run) -> str:
    """Markdown: what each kind of guidance changes at equal steps."""
    kept = {name: read_record(Kept, run.compared(name)).score for name in (BASE, *GUIDED)}
    titles = [by_key(key).head(kept[BASE].names) for key in SCORES]
    rows = [(name, *(_less(kept[name], kept[BASE], key) for key in SCORES)) for name in GUIDED]
    return markdown(Table(("seven guided steps", *(f"{title} less {BASE}'s" for title in titles)), rows), Path())


def _less(row: SamplerScores, base: SamplerScores, key: str) -> str:
    """The difference of a score, with its interval."""
    pairs = [(mine.values[key], other.values[key]) for mine, other in zip(row.ranges, base.ranges, strict=True)]
    known = [(a, b) for a, b in pairs if a is not None and b is not None]
    return interval(against([a for a, _ in known], [b for _, b in known]), by_key(key).digits)


if __name__ == "__main__":
    print(main(Run(Path(sys.argv[1]))))
