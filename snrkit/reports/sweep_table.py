"""The page of `snrkit sweep`: one row an arm and sampler, differences from the first arm."""

from snrkit.metrics.scores import ScoreDefinition, by_key, columns
from snrkit.reports.blocks import Block, Heading, OnPage, Paragraph, Row, Table, Verdict, interval, mean_of, spread
from snrkit.reports.citing import citation
from snrkit.reports.plots import Forest
from snrkit.reports.records import SweepArm, SweepTable
from snrkit.reports.run_figures import forest_row, listed

FEWER = 1  # digits than of one training
SHOWN = ("better", "worse")


def sweep_page(name: str, record: SweepTable) -> list[Block]:
    """The page of a sweep's record: the tables, what broke off, and what each arm changes."""
    differences = Table(*difference_table(record))
    told = [(arm, "; ".join(changes) or "-") for arm, changes in record.settings.items()]
    blocks: list[Block] = [
        Heading(f"Sweep {name}", 1),
        *_at_a_glance(record),
        Paragraph(
            f"Seeds of training {', '.join(map(str, record.seeds))}; brackets: paired 95 % t-intervals over them. "
            "Power and brightness: of the images over the data's, 1 is alike."
        ),
        Table(*arm_table(record), "Arms"),
    ]
    if differences.rows:
        blocks += [Heading(f"Other scores less {record.reference}'s"), differences]
    if record.failed:
        blocks += [
            Heading("Broken off"),
            Paragraph("Not tried again; to do so delete the arm's folder of rows, runs/<sweep>-<arm>-<seed>/sweep."),
            Table(("arm", "why"), list(record.failed.items())),
        ]
    everywhere = Paragraph(f"Everywhere: {'; '.join(record.everywhere) or 'the base file as it is'}.")
    changes: list[Block] = [Heading("What each arm changes"), everywhere, Table(("arm", "settings"), told, "Settings")]
    return [*blocks, *changes, *citation(f"snrkit sweep {name}.yaml", where="with the file of the sweep")]


def _at_a_glance(record: SweepTable) -> list[Block]:
    """The verdict in words, and the differences from the first arm."""
    score = by_key(record.decided_by)
    head = score.head(record.names)
    pairs = {label: arm.less_first for label, arm in record.arms.items() if arm.less_first is not None}
    less = {label: found[score.key] for label, found in pairs.items() if score.key in found}
    if not less:
        return []
    said = {label: words for label in less if (words := record.arms[label].said(score)) is not None}
    shown = [f"{label} is {said[label]}, {_less(record.arms[label], score)}" for label in less if said[label] in SHOWN]
    few = [label for label in less if said[label] == "too few images"]
    shown += [f"too few images to tell {listed(few)} from it"] if few else []
    text = "; ".join(shown) or "no difference is shown"
    rows = tuple(forest_row(label, found, said[label]) for label, found in less.items())
    caption = "Differences over equal seeds of training with paired 95 % intervals; hollow where none is shown."
    figure = Forest(f"Less {record.reference}", caption, f"{head}, arm less {record.reference}", rows)
    return [OnPage([Verdict(f"By {head}, beside {record.reference}: {text}."), Heading("At a glance"), figure])]


def arm_table(record: SweepTable) -> tuple[Row, list[Row]]:
    """(header, rows) as text: arm, seeds, scores, beside the first arm, looks."""
    lead, names = by_key(record.decided_by), record.names
    scores = columns("sweep", [arm.scores for arm in record.arms.values()], lead)
    header: Row = (
        *("arm", "seeds", f"{lead.head(names)} (min, max)", f"less {record.reference}'s [95 %]"),
        *(score.head(names) for score in scores.standing),
        *("power by ring", "spread of brightness", "skipped steps"),
        *(score.head(names) for score in scores.others),
    )
    rows: list[Row] = [
        (
            *(label, str(len(arm.seeds)), _first(arm, lead), _less(arm, lead)),
            *(mean_of(arm.scores.get(score.key), score.digits - FEWER) for score in scores.standing),
            *(" ".join(f"{ring:.2f}" for ring in arm.power), f"{arm.brightness:.2f}", str(arm.skipped)),
            *(mean_of(arm.scores.get(score.key), score.digits - FEWER) for score in scores.others),
        )
        for label, arm in record.arms.items()
    ]
    return header, rows


def difference_table(record: SweepTable) -> tuple[Row, list[Row]]:
    """(header, rows): the scores beside the first less those of the first arm, where both have them."""
    arms = {label: (arm, arm.less_first) for label, arm in record.arms.items() if arm.less_first is not None}
    scores = columns("sweep", [less for _, less in arms.values()], by_key(record.decided_by)).every
    known = [score for score in scores if any(score.key in less for _, less in arms.values())]
    header: Row = ("arm", *(score.head(record.names) for score in known))
    rows: list[Row] = [(label, *(_less(arm, score) for score in known)) for label, (arm, _) in arms.items()]
    return header, rows if known else []


def _first(arm: SweepArm, score: ScoreDefinition) -> str:
    found, digits = arm.scores.get(score.key), score.digits - FEWER
    return spread(found, digits) if len(arm.seeds) > 1 else mean_of(found, digits)


def _less(arm: SweepArm, score: ScoreDefinition) -> str:
    return interval((arm.less_first or {}).get(score.key), score.digits - FEWER)
