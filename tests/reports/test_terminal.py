"""The table of each command, at the widths of consoles and in a file, of records that are made up here.

What they look like stands in snapshots/; SNAPSHOTS=write writes them anew, to be read before they are kept.
"""

import io
import os
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from rich.cells import cell_len
from rich.console import Console

from snrkit.fitting.guard import Guard
from snrkit.metrics.estimate import Error
from snrkit.metrics.paired import Difference
from snrkit.metrics.records import PairScores, SamplerScores, ScoreCurve
from snrkit.metrics.scores import Entry, Scores, titles_on
from snrkit.reports import terminal
from snrkit.reports.comparison import contradictions
from snrkit.reports.layout import abreast
from snrkit.reports.records import (
    Audited,
    Beside,
    Comparison,
    ComparisonRow,
    Designed,
    FitMade,
    OverSeeds,
    SizeChange,
    SweepArm,
    SweepTable,
    Swept,
    Tuned,
    TunedNow,
    TunedValues,
    WithNull,
)
from snrkit.sampling.corrections import Dcw
from snrkit.sampling.grid import Karras
from snrkit.sampling.sampler import Sampler
from snrkit.sampling.solvers import Euler, Heun
from snrkit.shift.audit import PairsReading
from snrkit.shift.bootstrap import Curve, Number
from snrkit.shift.files import Facts, ShiftRecord
from snrkit.shift.measure import Shift
from snrkit.shift.telling import Telling, Walked

SNAPSHOTS = Path(__file__).parent / "snapshots"
WIDTHS = (80, 100, 160)
NAMES = titles_on("digits")
HEUN = Sampler(grid=Karras(steps=18), solver=Heun())
EULER = Sampler(grid=Karras(steps=13), solver=Euler())
DCW = EULER.model_copy(update={"corrections": (Dcw(pixel=0.0123),)})
CURVE = Curve([0.0], [0.0], [0.0])
SAMPLERS = {"heun-35": (HEUN, 35, 0.4123), "euler-13": (EULER, 13, 2.7182), "euler-13-dcw": (DCW, 13, 2.5)}


def shown(width, show, *given):
    """What a function prints on a console of a width; None: into a file, without COLUMNS."""
    file = io.StringIO()
    console = Console(file=file, width=width, force_terminal=width is not None, color_system=None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(terminal, "out", console)
        patch.delenv("COLUMNS", raising=False)
        show(*given)
    return file.getvalue()


def number(value, half):
    """A reading with an interval."""
    return Number(value, value - half, value + half)


def shift(gap, ratio):
    """A measurement whose curves are not shown."""
    whole = {name: CURVE for name in Shift.__dataclass_fields__ if Shift.__annotations__[name] is Curve}
    return Shift(
        logsnr=[0.0], images=1000, norm_reverse=[1.0], norm_forward=[1.0], part_ratio={}, part_ratio_null={},
        nearest_levels=1, x0_rms_true=number(0.5, 0.01), **whole,
        mean_norm_gap=number(gap, 0.0042), mean_norm_gap_null=number(-0.00123, 0.0031),
        mean_log_variance_ratio=number(ratio, 0.011), mean_log_variance_ratio_null=number(0.0021, 0.0098),
        mean_nearest=number(-0.031, 0.004), mean_nearest_null=number(0.0004, 0.003),
    )  # fmt: skip


def shifts():
    """Of three samplers, of which one has no shift and of one it cannot be read."""
    facts = Facts("", {}, 13, "ema-10000", 200064, 178, 0.95, "", "", 11)
    gaps = {"heun-35": 0.0011, "euler-13": 0.0312, "euler-13-dcw": float("nan")}
    return {
        name: ShiftRecord(replace(facts, sampler=name, nfe=SAMPLERS[name][1]), shift(gap, -20 * gap / 7), {})
        for name, gap in gaps.items()
    }


def entries(fd, kid=0.00123):
    """A summary of scores over three ranges."""
    return {
        "fd": Entry(fd, 0.97 * fd, 1.02 * fd, 0.03 * fd),
        "inception_score": Entry(9.123, 9.1, 9.2, 0.01),
        "kid": Entry(kid, kid, kid, 0.0, Error(0.0001, 0.00005)),
        "precision": Entry(0.8712, 0.86, 0.88, 0.01),
    }


def scores(name):
    """The scores of a sampler."""
    sampler, nfe, fd = SAMPLERS[name]
    return SamplerScores(
        11, name, sampler.model_dump(mode="json"), nfe, 200064, "ema-10000", "0-2999", "digits", "", "", NAMES,
        "digits", (Scores(1000, {"fd": fd}, ("IS over 3 splits instead of 10.",)),), entries(fd), None, {},
    )  # fmt: skip


def comparison():
    """Three samplers, of which one has a base."""
    change = SizeChange(0.021, 0.034, Difference(-0.00071, -0.00093, -0.00049), "smaller")
    differences = {"fd": Difference(-0.218, -0.301, -0.135), "kid": Difference(0.00002, -0.0001, 0.00014)}
    beside = Beside(0.0123, differences, "better", {"norm_gap": change, "nearest": None})
    rows = []
    for name, (sampler, nfe, fd) in SAMPLERS.items():
        found = shift(fd / 100, -fd / 50)
        rows.append(ComparisonRow(
            name, nfe, "euler-13" if sampler is DCW else None, sampler.model_dump(mode="json"), entries(fd), (),
            0.00123, WithNull(found.mean_norm_gap, found.mean_norm_gap_null),
            WithNull(found.mean_log_variance_ratio, found.mean_log_variance_ratio_null),
            WithNull(found.mean_nearest, found.mean_nearest_null), beside if sampler is DCW else None,
        ))  # fmt: skip
    return Comparison(
        tuple(rows), NAMES, "digits", "digits", 1000, 3, "0-2999", 200064, "ema-10000", ("Times are of one core.",),
        0.95, 500, {},
    )  # fmt: skip


def sweep():
    """Two arms over three seeds, and a training that broke off."""
    first = SweepArm((0, 1, 2), 35, "ema-10000", {"fd": OverSeeds(0.512, 0.48, 0.55, (0.48, 0.5, 0.55))}, None,
                     (1.01, 0.98, 0.9), 1.02, 0, (1.0,) * 3, (0.0,) * 3)  # fmt: skip
    less = {"fd": Difference(0.112, 0.034, 0.19)}
    other = replace(first, scores={"fd": OverSeeds(0.624, 0.6, 0.66, (0.6, 0.61, 0.66))}, less_first=less, skipped=4)
    failed = {"flow, seed 2": "the loss is not finite."}
    table = SweepTable(NAMES, (0, 1, 2), "edm", failed, {"edm": first, "eps": other}, {}, ())
    return Swept(table, "/runs/targets.md")


GUARD = Guard(True, -0.001, -0.0005, number(0.0912, 0.0021), number(0.0433, 0.0012), 0.00012, 0.01)


def tuned():
    """One sampler by two methods, and one that took a fit."""
    found = {
        "predicted": TunedValues((0.0101,), None, None, "100000-102999", 200064, ()),
        "fd": TunedValues((0.0123,), 2.5123, None, "100000-102999", 200064, ("0.pixel",)),
        "gap": TunedValues((0.02,), None, (0.0312, 0.0123), "100000-102999", 200064, ()),
    }
    record = Tuned("euler-13-dcw", ("0.pixel",), "100000-102999", "fd", 200064, "ema-10000", {}, ({},), found)
    return {
        "euler-13-dcw": TunedNow(record, (0.0123,), "/runs/digits/tune/tuned.yaml"),
        "fitted-13": FitMade("/runs/digits/fits/fitted-13.json", 13, GUARD, 256),
    }


def audited():
    """Two samplers, of which one is told another level than it is at, and training pairs."""
    calls = tuple(Telling(80.0 / k, -8.764 + k, -8.764 + k + 0.01 * k, 0.01 * k, 0.0001) for k in (1, 2, 3))
    walks = (Walked("heun-35", 2, None, calls, 12.4), Walked("inflated", 2, -0.2, calls, 12.4))
    pairs = PairsReading([-2.0, 2.0], 4096, 0, Curve([1.0, 1.01], [0.99, 1.0], [1.01, 1.02]),
                         Curve([1.0, 0.99], [0.99, 0.98], [1.01, 1.0]),
                         Curve([0.001, 0.04], [-0.012, 0.021], [0.014, 0.059]), 0.95)  # fmt: skip
    return Audited("digits", 0.01, walks, None, pairs, ("inflated 2 of 3 calls, farthest by +0.0300 nats",))


def curve():
    """Two checkpoints of one sampler."""
    found = ((1000, 3.0), (200_000, 0.4))
    points = (replace(scores("heun-35"), checkpoint_images=images, summary=entries(fd)) for images, fd in found)
    return {"heun-35": ScoreCurve("heun-35", tuple(points), 200_000, "fd")}


SHOWN = {
    "measure-shift": (terminal.show_shift, shifts),
    "eval-fid": (terminal.show_scores, lambda: {name: scores(name) for name in SAMPLERS}),
    "eval-fid-checkpoints": (terminal.show_curves, curve),
    "eval-fid-pair": (
        terminal.show_pair,
        lambda: PairScores("a", "b", "digits", "", "", NAMES, Scores(100, {"fd": 0.5, "kid": 0.001}, ("Few images.",))),
    ),
    "compare": (terminal.show_comparison, comparison),
    "compare-verbose": (partial(terminal.show_comparison, every=True), comparison),
    "sweep": (terminal.show_sweep, sweep),
    "tune": (terminal.show_tuned, tuned),
    "design": (
        terminal.show_designed,
        lambda: {"euler": Designed("euler-designed-8", "/runs/designed.yaml", {}, 0.0512, 0.0433, GUARD)},
    ),
    "audit": (terminal.show_audit, audited),
    "analyze": (
        terminal.show_analysis,
        lambda: {"prior_bits": {"linear": 4.5e-06, "laplace": 0.012}, "facts": {"Weights": "ema-10000"},
                 "charts": ["a", "b"], "page": "/runs/digits/analysis/index.html"},
    ),
}  # fmt: skip


@pytest.mark.parametrize("command", SHOWN)
def test_the_table_of_each_command_is_as_it_was_read(command):
    """At 80, 100 and 160 columns, and into a file, where it is as at 100."""
    show, make = SHOWN[command]
    at = {width: shown(width, show, make()) for width in WIDTHS}
    assert shown(None, show, make()) == at[100]
    text = "\n".join(f"=== {width} columns\n{found}" for width, found in at.items())
    path = SNAPSHOTS / f"{command}.txt"
    if os.environ.get("SNAPSHOTS") == "write":
        path.write_text(text)
    assert text == path.read_text()


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("command", SHOWN)
def test_no_line_of_a_command_is_wider_than_its_console(command, width):
    """Tables and sentences; paths and commands, which are to be copied, are shorter here."""
    show, make = SHOWN[command]
    assert all(cell_len(line) <= width for line in shown(width, show, make()).splitlines())


@pytest.mark.parametrize("command", [command for command in SHOWN if command != "compare"])
def test_every_number_stands_at_every_width(command):
    """The numbers and names that a console of 1000 columns shows, in whatever layout."""
    show, make = SHOWN[command]
    whole = [word for word in shown(1000, show, make()).split() if any(letter.isdigit() for letter in word)]
    for width in WIDTHS:
        words = shown(width, show, make()).split()
        assert not [word for word in whole if word not in words]


def test_a_comparison_shows_what_decides_at_every_width_and_as_much_more_as_fits():
    """In one table where there is room for it; what is left out is said to stand on the page."""
    for width in WIDTHS:
        _, *words = shown(width, terminal.show_comparison, comparison()).split("heun-35", 1)  # below the verdict
        said = words[0].split()
        for cell in ("35", "2.5000 (2.4250, 2.5500)", "-0.218 [-0.301, -0.135]", "better", "+0.0262"):
            assert set(cell.split()) <= set(said)
        lines = shown(width, terminal.show_comparison, comparison()).splitlines()
        assert sum(line.startswith("sampler ") for line in lines) == (0 if width < 100 else 1)
        assert lines[-1] == "All columns: -v."
    assert "All columns" not in shown(1000, terminal.show_comparison, comparison())


def test_columns_stand_abreast_as_far_as_they_fit():
    """Those that say nothing take no room, and one that would not fit beside the first hides none before it."""
    header, rows = ("a", "b", "none", "c", "d"), [("1", "22", "-", "333", "4" * 50), ("1", "22", "", "333", "4")]
    for width, count in ((1, 1), (4, 1), (5, 3), (9, 3), (10, 4), (61, 4), (62, 5), (80, 5)):
        assert abreast(header, rows, width) == count
    assert abreast(header, rows, 0) == 0


def test_a_distance_that_shows_the_opposite_of_what_decides_is_said():
    """Of a row that is better by FD and worse by KID, and of one that FD has too few images for; not of a small one."""
    record = comparison()
    decided = record.rows[-1]

    def said(kid, verdict, biased=()):
        difference = {**decided.beside.difference, "kid": kid}
        beside = replace(decided.beside, difference=difference, verdict=verdict, biased=biased)
        return contradictions(replace(record, rows=(*record.rows[:-1], replace(decided, beside=beside))))

    worse, better, none = Difference(0.2, 0.1, 0.3), Difference(-0.2, -0.3, -0.1), Difference(0.0, -0.1, 0.1)
    both = " (distances weigh features differently, and both can be right): euler-13-dcw."
    assert said(worse, "better") == f"By KID-digits, worse, where FD-digits says better{both}"
    assert said(better, "worse") == f"By KID-digits, better, where FD-digits says worse{both}"
    few = "By KID-digits, worse, where FD-digits cannot tell: euler-13-dcw."
    assert said(worse, "too few images", ("fd",)) == few
    for kid, verdict, biased in ((better, "better", ()), (none, "better", ()), (worse, "better", ("kid",)),
                                 (worse, "no difference shown", ())):  # fmt: skip
        assert said(kid, verdict, biased) == ""


def test_a_file_is_as_wide_as_columns_say(monkeypatch):
    """For a script that wants it otherwise."""
    monkeypatch.setattr(terminal, "out", Console(file=io.StringIO()))
    monkeypatch.setenv("COLUMNS", "60")
    terminal.show_scores({name: scores(name) for name in SAMPLERS})
    assert max(map(len, terminal.out.file.getvalue().splitlines())) <= 60


def test_what_was_made_is_said_with_its_absolute_path_and_the_next_command(tmp_path, monkeypatch):
    """Whole, however narrow the console is: they are to be copied."""
    monkeypatch.chdir(tmp_path)
    said = shown(20, terminal.show_made, "images of heun-35", "runs/digits/samples", "snrkit eval-fid a.yaml")
    where = f"images of heun-35: {tmp_path}/runs/digits/samples"
    assert said == f"{where}\nnext: snrkit eval-fid a.yaml\n"
