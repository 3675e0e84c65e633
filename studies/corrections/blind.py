"""Noise awareness with and without a branch that sees the level: python blind.py RUNS > blind.md, after its sweep.

FD of guided Euler, 13 steps of two evaluations each, less that of plain Euler with as many evaluations and with as many
steps, on equal seeds of training.
"""

import sys
from pathlib import Path

from snrkit.commands.sweep import load_sweep, make_table, stored_row, sweep_trials
from snrkit.metrics.paired import against
from snrkit.reports.blocks import Table, interval, markdown
from snrkit.reports.sweep_table import arm_table

HERE = Path(__file__).parent
PLAIN = {"13 evaluations": "euler-13", "26 evaluations": "euler-26"}


def main(runs: Path) -> str:
    """Markdown: every arm, then the differences."""
    sweep = load_sweep(HERE / "blind.yaml")
    rows = [(trial, row) for trial in sweep_trials(sweep, "blind") if (row := stored_row(trial, runs)) is not None]
    record = make_table(sweep, rows, sweep.settings)
    fd = {name: arm.scores["fd"].values for name, arm in record.arms.items()}
    head, cells = arm_table(record)
    found = []
    for name, own in fd.items():
        arm, sampler = name.split(" ", 1)
        if sampler.startswith("nag"):
            found.append((name, *(interval(against(own, fd[f"{arm} {plain}"]), 3) for plain in PLAIN.values())))
    differences = Table(("arm", *(f"FD less plain Euler's, {what}" for what in PLAIN)), found)
    return f"{markdown(Table(tuple(head), list(cells)), Path())}\n\n{markdown(differences, Path())}"


if __name__ == "__main__":
    print(main(Path(sys.argv[1])))
