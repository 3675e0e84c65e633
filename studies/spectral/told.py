"""What telling a network each image's spectrum does, and what the grid does: python told.py RUNS > told.md.

After `snrkit sweep told-digits.yaml` and `told-cifar10.yaml`: all arms of one training differ in the sampler alone.
"""

import sys
from collections.abc import Iterator
from pathlib import Path

from snrkit.commands.sweep import load_sweep, make_table, stored_row, sweep_trials
from snrkit.metrics.paired import against
from snrkit.reports.blocks import Table, interval, markdown
from snrkit.reports.sweep_table import arm_table

HERE = Path(__file__).parent
TITLES = {"told-digits": "Digits", "told-cifar10": "CIFAR-10"}
GRIDS, TOLD = ("own", "mean", "cosine"), ("own", "mean")
PAIRS = [  # (what differs, an arm, the arm that is subtracted)
    *((f"told own less told mean, {grid} grid", f"{grid}-grid-told-own", f"{grid}-grid-told-mean") for grid in GRIDS),
    *((f"own grid less mean grid, told {told}", f"own-grid-told-{told}", f"mean-grid-told-{told}") for told in TOLD),
]


def section(name: str, runs: Path) -> Iterator[str]:
    """One data set: every arm, then the differences over training seeds."""
    sweep = load_sweep(HERE / f"{name}.yaml")
    rows = [(trial, row) for trial in sweep_trials(sweep, name) if (row := stored_row(trial, runs)) is not None]
    record = make_table(sweep, rows, sweep.settings)
    fd = {arm: of.scores["fd"].values for arm, of in record.arms.items()}
    samplers = list(dict.fromkeys(arm.split(" ", 1)[1] for arm in fd))
    head, cells = arm_table(record)
    yield f"## {TITLES[name]}"
    yield markdown(Table(tuple(head), list(cells)), Path())
    found = [
        (what, *(interval(against(fd[f"{arm} {sampler}"], fd[f"{other} {sampler}"]), 3) for sampler in samplers))
        for what, arm, other in PAIRS
    ]
    yield markdown(Table(("FD, paired 95 %", *samplers), found), Path())


if __name__ == "__main__":
    print("\n\n".join(part for name in TITLES for part in section(name, Path(sys.argv[1]))))
