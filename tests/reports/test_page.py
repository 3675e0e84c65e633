"""Pages: their numbers are those of the records, whatever a text holds it stays text, and nothing is asked for."""

import base64
import hashlib
import itertools
import math
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from snrkit.base.charts import Chart
from snrkit.base.numerics import NUMERICS
from snrkit.base.records import read_record, to_json
from snrkit.base.sealed import read_json, write_json
from snrkit.experiment.certificate import AS_IT_IS, Certificate, Recipe, ShiftSplit, TriedCandidate
from snrkit.experiment.experiment import load_experiment
from snrkit.experiment.fits import FitOf
from snrkit.experiment.run import Run
from snrkit.fitting.guard import Guard
from snrkit.metrics.paired import Difference
from snrkit.metrics.scores import by_key
from snrkit.reports import blocks as kinds
from snrkit.reports.blocks import (
    Code,
    Details,
    Flip,
    Heading,
    InText,
    OnPage,
    Paragraph,
    Picture,
    Table,
    Verdict,
    document,
    short,
)
from snrkit.reports.comparison import _verdict, difference_rows
from snrkit.reports.glossary import TERMS, pieces
from snrkit.reports.page import page
from snrkit.reports.plots import (
    DENSE_DOTS,
    DENSE_POINTS,
    MOST_POINTS,
    NARROW,
    WIDE,
    Curves,
    Forest,
    ForestRow,
    Front,
    Point,
    Scale,
    Series,
    curves_of,
    drawing,
    numbers,
)
from snrkit.reports.records import Comparison, OverSeeds, SweepArm, SweepTable
from snrkit.reports.run_figures import comparable, glance, verdict
from snrkit.reports.run_report import what_to_do
from snrkit.reports.sweep_table import sweep_page
from snrkit.reports.terminal import _against_bases
from snrkit.sampling.grid import Karras, Listed
from snrkit.shift.bootstrap import Curve, Number
from snrkit.shift.files import Facts, ShiftRecord
from snrkit.shift.response import Response
from snrkit.shift.verdict import verdict_on
from tests.reports.reading import read
from tests.reports.test_terminal import scores, shift
from tests.small import snrkit

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(1)>\"'&{{ 7 * 7 }}${1}"


def every_kind(text, picture):
    """Blocks of every kind that hold a text wherever they can."""
    series = (Series(text, (Point(0, 1, 0, 2), Point(1, math.nan), Point(2, 3, 2, 4)), (Point(0, 0, -1, 1),)),)
    return [
        Heading(text, 1),
        Heading(text),
        OnPage([Verdict(text), Curves(text, text, text, text, series, 0.0)]),
        Forest(text, text, text, (ForestRow(text, 1.0, 0.5, 2.0, "worse"), ForestRow(text, 2.0, math.nan, math.nan))),
        Front(text, text, text, text, series, "lower"),
        Flip(text, text, [Picture(picture, text, samples=True), Picture(picture, text, samples=True)]),
        Table((text, text), [(text, text), ("a", "b")], text, frozenset({(0, 1)})),
        Details(text, [Paragraph(text), Code(text, text), Picture(picture, text)]),
        InText([Paragraph("in text only")]),
    ]


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "a.png"
    Image.new("L", (8, 8), 7).save(path)
    return path


def test_a_text_stays_text_wherever_it_stands(picture):
    """A page of hostile text has the tags, links and script of the same page of a harmless one; Markdown has none."""
    harmless, hostile = (read(page(text, every_kind(text, picture))) for text in ("n" * len(HOSTILE), HOSTILE))
    assert hostile.tags == harmless.tags
    assert hostile.links == harmless.links
    assert hostile.tags["script"] == 1
    assert HOSTILE in hostile.cells
    assert HOSTILE in hostile.heads
    lines = document(every_kind(HOSTILE, picture), picture.parent).splitlines()
    assert not [line for line in lines if "<" in line and not line.startswith("    ")]  # but in indented code


def test_every_kind_of_block_has_its_place_in_both_forms(picture):
    """The union is what is tested here; figures and flips are on pages, InText is not, and no id stands twice."""
    blocks = every_kind("name", picture)
    inner = [part for block in blocks if isinstance(block, OnPage | Details | InText) for part in block.blocks]
    assert {type(block) for block in (*blocks, *inner)} == set(kinds.Block.__args__)
    found, text = read(page("t", blocks)), document(blocks, picture.parent)
    assert "in text only" in text
    assert "in text only" not in "".join(found.words)
    assert text.count("![") == 1  # the flip stands on the page alone
    assert found.tags["figure"] == 5
    assert found.tags["details"] == 1 + 3 + 1  # folded, numbers of figures, the glossary
    assert len(set(found.ids)) == len(found.ids)


def test_a_page_allows_itself_one_script_and_nothing_else(picture):
    """Its policy names the checksum of the script that stands in it, and pictures in it; no address leads elsewhere."""
    text = page("t", every_kind("name", picture))
    script = re.search(r"<script>(.*)</script>", text, re.DOTALL).group(1)
    checksum = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    found = read(text)
    assert found.meta["Content-Security-Policy"] == (
        f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{checksum}'; "
        "base-uri 'none'; form-action 'none'"
    )
    assert all(link.startswith(("data:image/png;base64,", "#")) for link in found.links)
    assert set(re.findall(r"https?://[^\s\"']*", text)) == {"http://www.w3.org/2000/svg"}  # the name of SVG


def test_a_report_says_what_the_records_hold(finished):
    """Every reading of every level, every score and every null on the page is the number of its file."""
    run = Run(finished / "runs/small")
    found = read(run.report(".html").read_text())
    for name in ("euler", "dcw"):
        shift, scores = read_json(run.shift(name)), read_json(run.metrics(name))
        for title, key in (("Norm gap", "norm_gap"), ("Variance ratio", "variance_ratio")):
            said = {
                head: tip for (figure, series, head), tip in found.tips.items() if (figure, series) == (title, name)
            }
            assert said == {
                f"logsnr {rounded(logsnr)}": interval(*(shift[key][part][at] for part in ("value", "low", "high")))
                for at, logsnr in enumerate(shift["logsnr"])
            }
            for part in ("value", "low", "high"):
                assert {f"{value:.6g}" for value in shift[f"{key}_null"][part]} <= set(found.cells)
        fd = scores["summary"]["fd"]
        assert found.tips["Cost and quality", name, "NFE 4"] == interval(fd["mean"], fd["min"], fd["max"])
        assert f"{fd['mean']:.4f} ({fd['min']:.4f}, {fd['max']:.4f})" in found.cells
    assert {figure for figure, _, _ in found.tips} >= {
        f"Variance ratio, band {band}" for band in ("ll", "lh", "hl", "hh")
    }


@pytest.mark.parametrize(
    ("gap", "null", "response", "says"),
    [((-0.005, -0.02, 0.01), (-0.039, -0.049, -0.029), None, "No norm gap is shown for mine."),
     ((0.02, 0.01, 0.03), (-0.039, -0.049, -0.029), None, "The network finds more noise than it is told"),
     ((-0.08, -0.09, -0.07), (-0.039, -0.049, -0.029), None, "The network finds less noise than it is told"),
     ((-0.08, -0.09, -0.07), (-0.039, -0.049, -0.029), 0.01, "hardly sees how large its states are")],
)  # fmt: skip
def test_a_page_shows_a_shift_where_a_measurement_does(gap, null, response, says):
    """Beyond 0 and beyond the null, of a network that sees how large its states are; as snrkit.measure says it."""
    curve = Curve([0.0], [0.0], [0.0])
    seen = {} if response is None else {"response": Response(32, curve, Number(*[response] * 3))}
    of = replace(shift(0.0, 0.0), mean_norm_gap=Number(*gap), mean_norm_gap_null=Number(*null))
    record = ShiftRecord(Facts("mine", {}, 13, "ema", 1, 1, 0.95, "", "", 0), of, seen)
    assert says in verdict({}, {"mine": record}).text
    sentence = verdict_on(of.mean_norm_gap, of.mean_norm_gap_null, seen.get("response"))
    assert ("No shift" in sentence) == ("No norm gap" in says)
    assert ("cannot say" in sentence) == ("hardly sees" in says)


def test_readings_on_opposite_sides_are_explained():
    """Whichever lies above its null; readings on one side, and one that is not told from its null, are not."""
    low, high = (
        "ratio of mine lies below its null, though the norm gap is above",
        "lies above its null, though the norm gap is below",
    )
    for one, other, said in ((0.1, -0.1, low), (-0.1, 0.1, high), (0.1, 0.1, ""), (-0.1, -0.1, ""), (0.1, 0.0, "")):
        ends = {
            "mean_norm_gap": Number(one, one - 0.01, one + 0.01), "mean_norm_gap_null": Number(0.0, -0.001, 0.001),
            "mean_log_variance_ratio": Number(other, other - 0.01, other + 0.01),
            "mean_log_variance_ratio_null": Number(0.0, -0.001, 0.001),
        }  # fmt: skip
        record = ShiftRecord(Facts("mine", {}, 13, "ema", 1, 1, 0.95, "", "", 0), replace(shift(0.0, 0.0), **ends), {})
        (block,) = glance({}, {"mine": record})
        text = " ".join(each.text for each in block.blocks if isinstance(each, Paragraph))
        assert said in text
        assert ("Both can be true" in text) is bool(said)


def test_scores_of_other_numbers_of_images_are_not_set_beside_each_other():
    """The distance falls with them, and with the features."""
    first, more, other = scores("euler-13"), scores("heun-35"), replace(scores("heun-35"), features_key="of others")
    more = replace(more, ranges=tuple(replace(part, images=10_000) for part in more.ranges))
    assert set(comparable({"first": first, "more": more, "other": other, "same": scores("heun-35")})[0]) == {
        "first",
        "same",
    }


def rounded(value):
    return f"{value:.4g}".replace("-", "\N{MINUS SIGN}")


def interval(value, low, high):
    return f"{rounded(value)} [{rounded(low)}, {rounded(high)}]"


def test_a_report_says_what_to_do(finished):
    """What certificates say of samplers as they are now; where there is none, the command that gives one."""
    run = Run(finished / "runs/small")
    e = load_experiment(run.config)
    _, said = what_to_do(run, e)
    assert "snrkit certify small, in the folder that holds the run, tries other samplers" in said.text
    number, of = Number(0.1, 0.0, 0.2), FitOf("{}", NUMERICS, "training", "weights", 640, "checksum", None)
    definition = e.samplers["euler"].model_dump(mode="json")
    found = Certificate(
        "small", "euler", "leave it as it is", "Leave it as it is.", 4, of, "", (), "", 0.0, AS_IT_IS,
        Recipe(definition, of, None), Guard(False, 0.0, 0.1, number, number, 0.0), None,
        ShiftSplit(number, number, number, number, ""),
        (TriedCandidate(of, "", AS_IT_IS, definition, None, number, ""),), (), 20, "0-59", "0-99", "", {},
    )  # fmt: skip
    write_json(run.certificate("euler"), to_json(found))
    assert [block.text for block in what_to_do(run, e)[1:]] == [found.sentence]
    other = e.samplers["euler"].model_copy(update={"start": "exact"})
    assert what_to_do(run, e.model_copy(update={"samplers": {"euler": other}}))[1] == said
    for old in (replace(of, checkpoint_images=320), replace(of, numerics=NUMERICS - 1)):
        write_json(run.certificate("euler"), to_json(replace(found, of=old)))
        assert what_to_do(run, e)[1] == said
    run.certificate("euler").write_bytes(b"{")
    assert what_to_do(run, e)[1] == said
    run.certificate("euler").unlink()


def test_too_few_images_are_no_verdict(finished):
    """Neither better nor worse, nor best, nor one of several rows; in words on the page."""
    record = read_record(Comparison, Run(finished / "runs/small").comparison())
    rows = [
        row if row.beside is None else replace(row, beside=replace(row.beside, verdict="too few images"))
        for row in record.rows
    ]
    few = replace(record, rows=tuple(rows))
    said = _verdict(few).text
    assert said.startswith(f"{record.images_a_range} images of a range are too few for FD-pixel to tell dcw from")
    assert "best mean" not in said
    assert (few.differences, few.together) == ({}, "")
    assert "too few images: dcw" in _against_bases(few, by_key("fd"))
    decided = replace(record, rows=tuple(
        row if row.beside is None else replace(row, beside=replace(row.beside, biased=("fd",))) for row in record.rows
    ))  # fmt: skip
    header, (cells, *_) = difference_rows(replace(decided, decided_by="kid"))
    assert cells[header.index("FD-pixel")].endswith(", too few images")


def test_a_comparison_says_what_its_record_holds(finished):
    """The paired difference with its interval, every mean norm gap, and the verdict in words."""
    run = Run(finished / "runs/small")
    found, record = read(run.comparison(".html").read_text()), read_json(run.comparison())
    rows = {row["name"]: row for row in record["rows"]}
    less = rows["dcw"]["difference"]["fd"]
    tips = {(figure, series): tip for (figure, series, _), tip in found.tips.items()}
    assert tips["Paired differences", "dcw less euler"] == interval(less["mean"], less["low"], less["high"])
    for name, row in rows.items():
        gap = row["mean_norm_gap"]
        assert tips["Mean norm gap", name] == interval(gap["value"], gap["low"], gap["high"])
    words = "".join(found.words)
    verdict = {"better": "dcw is better than euler", "worse": "dcw is worse than euler"}
    assert verdict.get(rows["dcw"]["verdict"], "No difference from its base is shown for dcw") in words


def test_a_sweep_says_what_its_record_holds():
    """The difference of an arm from the first with its interval, in the figure, in the table and in words."""

    def arm(less):
        fd = OverSeeds(1.5, 1.0, 2.0, (1.0, 2.0))
        return SweepArm((0, 1), 4, "ema", {"fd": fd}, less, (1.0,), 1.0, 0, (None, None), (None, None))

    arms = {"plain": arm(None), "cold": arm({"fd": Difference(-0.2, -0.3, -0.1)})}
    settings = {"plain": (), "cold": ("train.lr=1e-3",)}
    record = SweepTable({"fd": "FD-pixel"}, (0, 1), "plain", {}, arms, settings, ())
    found = read(page("sweep", sweep_page("knobs", record)))
    assert found.tips["Less plain", "cold", "cold"] == interval(-0.2, -0.3, -0.1)
    assert "-0.200 [-0.300, -0.100]" in found.cells
    assert "cold is better, -0.200 [-0.300, -0.100]." in "".join(found.words)
    few = replace(record, arms={**arms, "cold": replace(arms["cold"], biased=("fd",))})
    assert "beside plain: too few images to tell cold from it." in page("sweep", sweep_page("knobs", few))
    other = replace(record, arms={**arms, "cold": replace(arms["cold"], biased=("fd_infinity",))})
    assert "cold is better" in page("sweep", sweep_page("knobs", other))


def test_equal_runs_make_equal_bytes_of_bounded_size(finished, tmp_path):
    """Reports written twice, and of a copy elsewhere, are the same; one stays below 1.5 MB."""
    first = (finished / "runs/small/report.html").read_bytes()
    shutil.copytree(finished / "runs/small", tmp_path / "small")
    snrkit(tmp_path, "report", tmp_path / "small", plain=True)
    assert (tmp_path / "small/report.html").read_bytes() == first
    assert len(first) < 1_500_000
    assert first.count(b"data:image/png;base64,") >= 4  # samples of both, and pictures of their shifts


def test_several_runs_stand_on_one_page(finished, tmp_path):
    """Curves of both on shared axes by the names of run and sampler, what differs, all pictures."""
    for name in ("one", "two"):
        shutil.copytree(finished / "runs/small", tmp_path / name)
    done = snrkit(tmp_path, "report", tmp_path / "one", tmp_path / "two", plain=True)
    text = (tmp_path / "report.html").read_text()
    found = read(text)
    names = {f"{run}: {sampler}" for run in ("one", "two") for sampler in ("euler", "dcw")}
    for figure in ("Norm gap", "Cost and quality"):
        assert {series for title, series, _ in found.tips if title == figure} == names
    assert names <= set(found.heads)  # of what differs
    assert "one: euler" in done.stdout
    assert text.count('name="part-') == 4  # choices of the flip
    markdown = (tmp_path / "report.md").read_text()
    for place in re.findall(r"!\[[^\]]*\]\(([^)]*)\)", markdown):
        assert (tmp_path / place).is_file()
    snrkit(tmp_path, "report", tmp_path / "one", tmp_path / "two", "-o", tmp_path / "again.html", plain=True)
    assert (tmp_path / "again.html").read_text() == text


def test_runs_to_report_are_told_apart_from_mistakes(finished, tmp_path):
    """One sentence each: nothing to report, both ways at once, a run twice, no run, no HTML file."""
    run = finished / "runs/small"
    config = ("--config", finished / "small.yaml")
    for words, said in (
        ((), "give run directories, or a YAML"),
        ((run, *config), "give run directories, or a YAML"),
        ((*config, "-o", tmp_path / "a.html"), "the report of a YAML lies in its own"),
        ((run, "--set", "seed=1"), "--set changes a YAML"),
        ((run, run, "-o", tmp_path / "a.html"), "is given twice"),
        ((run, tmp_path), "is not a run directory"),
        ((run, "-o", tmp_path / "a.txt"), "does not end in .html"),
    ):
        done = snrkit(tmp_path, "report", *words, plain=True, check=False)
        assert done.returncode == 1
        assert said in done.stderr
        assert len(done.stderr.strip().splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_large_pictures_get_smaller_and_broken_ones_stay(tmp_path):
    """A large photograph-like picture is put into fewer pixels; what is no PNG is embedded as it is."""
    large, broken = Picture(tmp_path / "large.png", "large", samples=True), Picture(tmp_path / "broken.png", "broken")
    noise = Image.effect_noise((4000, 2000), 100)
    noise.save(large.path)
    broken.path.write_bytes(b"x")
    text = page("t", [large, broken])
    embedded = [base64.b64decode(part) for part in re.findall(r"base64,([^\"]*)", text)]
    (tmp_path / "found.png").write_bytes(embedded[0])
    with Image.open(tmp_path / "found.png") as found:
        assert found.size == (1334, 667)
    assert embedded[1] == b"x"


def test_names_of_the_field_are_explained_where_they_stand():
    """Each at its first occurrence, the longest name first, never within a word, some only where they stand alone."""
    said = [(piece.text, piece.term.name) for piece in pieces("norm gap, nats; FD∞-digits, FD, norm gap") if piece.term]
    assert said == [("norm gap", "norm gap"), ("nats", "nats"), ("FD∞", "FD∞"), ("FD", "FD")]
    assert not [piece for piece in pieces("precision fp32, nullable, untold, AFD") if piece.term]
    assert [piece.term.name for piece in pieces("precision") if piece.term] == ["precision"]
    for term in TERMS:
        assert all("".join(piece.text for piece in pieces(text)) == text for text in (term.name, term.meaning))
    assert len({term.anchor for term in TERMS}) == len(TERMS)


@pytest.mark.parametrize(("low", "high"), [(-9.1, 12.7), (0.001, 0.0017), (-4e5, 3e6), (13, 35), (-1e-9, 1e-9)])
def test_ticks_are_round_within_the_axis_and_few(low, high):
    """Between 2 and the most that is asked for; each says the value of its place."""
    scale = Scale(low, high, 10.0, 510.0)
    ticks = scale.ticks(6)
    assert 2 <= len(ticks) <= 7
    for tick in ticks:
        value = float(tick.text.replace("\N{MINUS SIGN}", "-"))
        assert scale(value) == pytest.approx(tick.at, abs=0.01)
        assert 10 <= tick.at <= 510
    steps = {round(b.at - a.at, 6) for a, b in itertools.pairwise(ticks)}
    assert max(steps) - min(steps) < 1e-3


def test_a_figure_draws_what_is_finite_and_thins_what_is_long():
    """A gap breaks the line, marks lie within the frame, nothing finite draws nothing, tables keep every point."""
    many = tuple(Point(x, math.sin(x), -1, 1) for x in range(1000))
    holed = (Point(0, 1, 0, 2), Point(1, math.nan, math.nan, math.nan), Point(2, 1, 0, 2), Point(3, 1, 0, 2))
    plot = Curves("t", "c", "x", "y", (Series("many", many), Series("holed", holed)))
    for size in (WIDE, NARROW):
        drawn = drawing(plot, size, {"many": 0, "holed": 1})
        assert [len(mark.dots) for mark in drawn.marks] == [MOST_POINTS, 3]
        assert drawn.marks[1].line.count("M") == 2
        assert drawn.marks[1].band.count("M") == 2
        assert all(drawn.left <= d.x <= size[0] - drawn.right for mark in drawn.marks for d in mark.dots)
    assert len(numbers(plot)[1]) == 1004
    nothing = Curves("t", "c", "x", "y", (Series("a", (Point(math.nan, 1),)),))
    assert drawing(nothing, WIDE, {}) is None
    assert "No finite value to draw." in page("t", [nothing, Forest("t", "c", "x", ())])


def test_the_front_goes_through_the_best_at_every_cost():
    """Of a score of which less is better, and of one of which more is: the step line turns at other points."""
    series = tuple(Series(str(i), (Point(x, y),)) for i, (x, y) in enumerate(((1, 5.0), (2, 6.0), (3, 2.0), (4, 3.0))))
    turns = {
        better: drawing(Front("t", "c", "x", "y", series, better), WIDE, {}).front for better in ("lower", "higher")
    }
    assert [turns[better].count("V") for better in ("lower", "higher")] == [1, 1]
    assert turns["lower"] != turns["higher"]


def test_the_package_holds_what_a_page_needs():
    """Template, style and script are files of the package, and the script ends no element that holds it."""
    assets = Path(kinds.__file__).parent / "assets"
    assert {path.name for path in assets.iterdir()} == {"page.html", "page.css", "page.js"}
    assert "</" not in (assets / "page.js").read_text()


def test_powers_of_ten_stand_evenly_and_what_is_not_above_0_nowhere():
    """Of a logarithmic figure; a dense one has as many points as fit, and answers at some of them."""
    x = torch.linspace(0, 10, 241, dtype=torch.float64)
    chart = Chart("power", "powers", "y", {"up": (x, 10 ** (x - 5)), "none": (x, -x)}, "x", "log")
    plot = curves_of(chart)
    found = drawing(plot, WIDE, {"up": 0, "none": 1})
    assert found is not None
    up, none = found.marks
    assert (none.line, none.dots) == ("", ())
    assert len(up.line.split("L")) == DENSE_POINTS
    assert len(up.dots) == DENSE_DOTS
    places = [tuple(map(float, place.split())) for place in up.line.removeprefix("M").split("L")]
    slopes = [(b[1] - a[1]) / (b[0] - a[0]) for a, b in itertools.pairwise(places)]
    assert max(slopes) - min(slopes) < 0.05  # a power is a line there
    apart = [b.at - a.at for a, b in itertools.pairwise(found.y_ticks)]
    assert max(apart) - min(apart) < 1e-9
    assert [tick.text for tick in found.y_ticks] == ["10⁻⁵", "0.01", "10", "10⁴"]
    assert "<summary>Numbers" not in page("x", [plot])


def test_nothing_is_drawn_beyond_the_limits_of_a_figure():
    """A line ends where it leaves them."""
    x = torch.linspace(0, 1, 101, dtype=torch.float64)
    chart = Chart("line", "a line", "y", {"line": (x, x)}, "x", limits=(0.25, 0.5))
    found = drawing(curves_of(chart), WIDE, {"line": 0})
    assert found is not None
    said = [float(dot.tip) for dot in found.marks[0].dots]
    assert said
    assert all(0.25 <= value <= 0.5 for value in said)


def test_a_listed_grid_is_told_by_its_steps():
    """Every grid is, listed or laid out by a rule; a long list by its length."""
    assert short(Listed(logsnr=tuple(range(-6, 7))), first="steps") == "listed 13 (logsnr of 13 numbers)"
    assert short(Karras(steps=7), first="steps") == "karras 7"
