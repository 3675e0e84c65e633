"""What telling a network each image's spectrum does, and what the grid does: python told.py RUNS > told.md.

After `snrkit sweep told-digits.yaml` and `told-cifar10.yaml`: all arms of one training differ in the sampler alone.
"""

import sys
from collections.abc import Iterator
from pathlib import Path

from snrkit.commands.sweep import load_sweep, make_table, stored_row, sweep_trials
from snrkit.metrics.paired import Difference, against, holm
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
    """One data set: every arm, then the differences over training seeds; nothing before all of its rows are made."""
    sweep = load_sweep(HERE / f"{name}.yaml")
    rows = [(trial, stored_row(trial, runs)) for trial in sweep_trials(sweep, name)]
    made = [(trial, row) for trial, row in rows if row is not None]
    if len(made) < len(rows):
        print(f"{name}: {len(rows) - len(made)} of {len(rows)} rows are not made yet", file=sys.stderr)
        return
    record = make_table(sweep, made, sweep.settings)
    fd = {arm: of.scores["fd"].values for arm, of in record.arms.items()}  # of the training seeds, in their order
    samplers = list(dict.fromkeys(arm.split(" ", 1)[1] for arm in fd))
    asked = [pair for pair in PAIRS if set(pair[1:]) <= set(sweep.arms)]
    found: dict[str, dict[str, Difference]] = {
        what: {at: against(fd[f"{arm} {at}"], fd[f"{other} {at}"]) for at in samplers} for what, arm, other in asked
    }
    head, cells = arm_table(record)
    yield f"## {TITLES[name]}"
    yield markdown(Table(tuple(head), list(cells)), Path())
    less = [(what, *(interval(each, 3) for each in of.values())) for what, of in found.items()]
    yield markdown(Table(("FD, paired 95 %", *samplers), less), Path())
    flat = {f"{what} at {at}": each for what, of in found.items() for at, each in of.items()}
    left = ", ".join(holm(flat, len(sweep.seeds))) or "none"
    yield f"Holm's correction over these {len(flat)} differences leaves {left}."


if __name__ == "__main__":
    print("\n\n".join(part for name in TITLES for part in section(name, Path(sys.argv[1]))))
