"""The page of `snrkit sweep`: one row an arm and sampler, differences from the first arm."""

from collections.abc import Mapping
from typing import Any

from snrkit.reports.blocks import Block, Heading, Paragraph, Row, Table, mean_of, spread


def sweep_page(name: str, record: Mapping[str, Any]) -> list[Block]:
    """The page of a sweep's record: the table, what broke off, and what each arm changes."""
    header, rows = arm_table(record)
    told = [(arm, "; ".join(changes) or "-") for arm, changes in record["settings"].items()]
    blocks: list[Block] = [
        Heading(f"Sweep {name}", 1),
        Paragraph(f"Seeds of training {', '.join(map(str, record['seeds']))}; brackets: paired 95 % t-intervals over "
                  "them. Power and brightness: of the images over the data's, 1 is alike."),
        Table(header, rows),
    ]  # fmt: skip
    if record["failed"]:
        blocks += [
            Heading("Broken off"),
            Paragraph("Not tried again; to do so delete the arm's folder of rows, runs/<sweep>-<arm>-<seed>/sweep."),
            Table(("arm", "why"), list(record["failed"].items())),
        ]
    everywhere = "; ".join(record["everywhere"]) or "the base file as it is"
    return [
        *blocks, Heading("What each arm changes"), Paragraph(f"Everywhere: {everywhere}."),
        Table(("arm", "settings"), told),
    ]  # fmt: skip


def arm_table(record: Mapping[str, Any]) -> tuple[Row, list[Row]]:
    """(header, rows) as text: arm, seeds, scores, beside the first arm, looks."""
    names = record["names"] or {"fd": "FD", "is": "IS", "kid": "KID"}
    header: Row = ("arm", "seeds", f"{names['fd']} (min, max)", f"less {record['reference']}'s [95 %]", names["is"],
                   names["kid"], "power by ring", "spread of brightness", "skipped steps")  # fmt: skip
    rows: list[Row] = []
    for label, arm in record["arms"].items():
        less, several = arm["less_first"], len(arm["seeds"]) > 1
        rows.append((
            label, str(len(arm["seeds"])), spread(arm["fd"], 3) if several else mean_of(arm["fd"], 3),
            "-" if less is None else interval(less["fd"]),
            mean_of(arm.get("inception_score"), 2), mean_of(arm.get("kid"), 4),
            " ".join(f"{ring:.2f}" for ring in arm["power"]), f"{arm['brightness']:.2f}", str(arm["skipped"]),
        ))  # fmt: skip
    return header, rows


def interval(found: Mapping[str, float | None]) -> str:
    """A difference of `against`: mean [low, high]."""
    if found["low"] is None:
        return f"{found['mean']:+.3f}"
    return f"{found['mean']:+.3f} [{found['low']:+.3f}, {found['high']:+.3f}]"
