"""Corrections over five trainings: python studies/corrections/seeds.py RUNS > studies/corrections/seeds.md

After the sweeps seeds-edm, seeds-flow and seeds-ddpm, of which those that are there are shown. A row is compared with
Euler of equal evaluations, training by training.
"""

import sys
from pathlib import Path

from snrkit.commands.sweep import load_sweep, make_table, stored_row, sweep_trials
from snrkit.metrics.paired import Difference, against, holm
from snrkit.metrics.scores import by_key
from snrkit.reports.blocks import Table, interval, markdown
from snrkit.reports.records import SweepTable

HERE = Path(__file__).parent
FAMILIES = ("edm", "flow", "ddpm")
SCORES = ("fd", "fd_infinity", "kid", "inception_score")


def records(runs: Path) -> dict[str, SweepTable]:
    """The sweeps whose trials are all there and have all been trained to their end, by family."""
    found = {}
    for family in FAMILIES:
        sweep = load_sweep(HERE / f"seeds-{family}.yaml")
        trials = sweep_trials(sweep, f"seeds-{family}")
        rows = [(trial, row) for trial in trials if (row := stored_row(trial, runs)) is not None]
        if len(rows) == len(trials) and not any(row.failed for _, row in rows):
            found[family] = make_table(sweep, rows, sweep.settings)
    return found


def less_euler(record: SweepTable) -> dict[str, dict[str, Difference]]:
    """By row and score, a row less Euler of as many evaluations."""
    found: dict[str, dict[str, Difference]] = {}
    for name, arm in record.arms.items():
        base = record.arms[f"euler-{name.rsplit('-', 1)[1]}"]
        if arm is not base:
            found[name] = {key: against(arm.scores[key].values, base.scores[key].values) for key in SCORES}
    return found


def main(runs: Path) -> str:
    """Markdown: every row with its scores, its differences, and what Holm's correction leaves."""
    tables = records(runs)
    if not tables:
        return "No sweep is finished."
    names = next(iter(tables.values())).names
    heads = [by_key(key).head(names) for key in SCORES]
    rows: list[tuple[str, ...]] = []
    asked: dict[str, Difference] = {}
    trainings = 0
    for family, record in tables.items():
        differences, trainings = less_euler(record), len(record.seeds)
        for name, arm in record.arms.items():
            fd, less = arm.scores["fd"], differences.get(name, {})
            cells = [interval(less[key], by_key(key).digits) if less else "-" for key in SCORES]
            rows.append((family, name, f"{fd.mean:.3f} ({fd.min:.3f}, {fd.max:.3f})", *cells))
            asked |= {f"{family} {name}": less["fd"]} if less else {}
    header = ("family", "row", f"{heads[0]}, mean (least, most)", *(f"{head} less Euler's" for head in heads))
    left = ", ".join(holm(asked, trainings)) or "none"
    said = (
        f"{trainings} trainings a family; by {heads[0]}, Holm's correction over the {len(asked)} rows leaves: {left}."
    )
    return f"{markdown(Table(header, rows), Path())}\n\n{said}"


if __name__ == "__main__":
    print(main(Path(sys.argv[1])))
