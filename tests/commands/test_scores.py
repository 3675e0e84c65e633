"""A score is one record in SCORES: it is computed, kept and shown everywhere, and so is every other."""

import contextlib
import dataclasses
import io
import json
import statistics
from functools import partial

import numpy as np
import pytest
import torch
import yaml

from snrkit.base.distributed import World
from snrkit.base.errors import SnrkitError
from snrkit.base.records import from_json, to_json
from snrkit.base.sealed import read_json, write_json
from snrkit.commands.compare import run_comparing
from snrkit.commands.eval_fid import run_curves, run_scoring, score_pair
from snrkit.commands.sample import run_sampling
from snrkit.commands.sweep import load_sweep, row_path, run_sweep, sweep_trials
from snrkit.commands.train import run_training
from snrkit.experiment.experiment import load_experiment
from snrkit.experiment.opening import open_experiment
from snrkit.experiment.run import Run
from snrkit.experiment.scorer import disjoint, open_scorer
from snrkit.metrics import scores
from snrkit.metrics.scores import PRIMARY, SCORES, Entry, ScoreDefinition
from snrkit.reports import terminal
from snrkit.reports.layout import measured
from tests.reports.reading import read
from tests.small import SMALL, load_images, write_config

WORLD = World(0, 1, torch.device("cpu"))
TOY = ScoreDefinition(
    "toy_score", "toy", lambda pair: float(pair.features[0].abs().mean()), 4, "higher", ("features",), "u"
)
NAMED = ScoreDefinition(
    "named", "new", lambda pair: float(pair.found.gaussian.mean.norm()), 3, "lower", inception="new"
)
SILENT = ScoreDefinition("silent", "silent", lambda pair: None, 2, "lower")
ASKED = tuple(score for score in SCORES if score.asked)  # which this experiment does not ask for
SHOWN = (*(score for score in SCORES if score not in ASKED), TOY, NAMED)
EVERY = (*SCORES, TOY, NAMED, SILENT)
EULER = SMALL["samplers"]["euler"]
CHANGES = {
    "samplers": {"euler": EULER, "dcw": {**EULER, "corrections": [{"kind": "dcw", "pixel": 0.02}]}},
    "train": {**SMALL["train"], "images": 128, "save_every": 64, "augment": None},
    "network": {**SMALL["network"], "augment": False, "dropout": 0.0},
    "metrics": {"features": "classifier", "ranges": 2},
    "compare": {"rounds": 1, "timed_images": 2},
}
SWEEP = {"base": "small.yaml", "seeds": [3, 5], "arms": {"plain": [], "cold": ["train.lr=1e-5"]}}


def printed(show, record):
    """What a table on the terminal says."""
    with contextlib.redirect_stdout(io.StringIO()) as text:
        show(record)
    return text.getvalue()


@dataclasses.dataclass
class Made:
    """Everything that was made with three further scores: JSON by command, and pages by name."""

    run: Run
    json: dict
    pages: dict


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A run that was trained, sampled, scored in every way, compared, swept and reported."""
    folder = tmp_path_factory.mktemp("scores")
    runs, run, content, pages = folder / "runs", Run(folder / "runs" / "small"), {}, {}
    experiment = load_experiment(write_config(folder, **CHANGES))
    (folder / "arms.yaml").write_text(yaml.safe_dump(SWEEP, sort_keys=False))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scores, "SCORES", EVERY)
        run_training(experiment, runs, WORLD, True)
        run_sampling(experiment, runs, WORLD, quiet=True)
        np.savez(folder / "images.npz", load_images(run.samples("euler"), range(64)).permute(0, 2, 3, 1).numpy())
        found = {
            "scores": (run_scoring(experiment, runs, WORLD, quiet=True), terminal.show_scores),
            "curves": (run_curves(experiment, runs, WORLD, ["euler"], "last 2", quiet=True), terminal.show_curves),
            "compare": (
                run_comparing(experiment, runs, WORLD, quiet=True),
                partial(terminal.show_comparison, every=True),
            ),
            "sweep": (run_sweep(folder / "arms.yaml", runs, WORLD, quiet=True), terminal.show_sweep),
        }
        for name, (record, show) in found.items():
            content[name] = json.loads(json.dumps(to_json(record)))
            pages[f"{name} on the terminal"] = printed(show, record)
        patch.setattr(terminal, "_print", lambda header, rows: None)
        terminal.show_report(*terminal.make_report(experiment, runs))
        pages |= {path.name: path.read_text() for path in [*run.path.glob("*.md"), *run.path.glob("*.html")]}
        pages["arms.md"] = (runs / "arms.md").read_text()
    return Made(run, content, pages)


def tables(page):
    """The tables of a Markdown page: columns by head."""
    for block in page.split("\n\n"):
        if block.startswith("| "):
            header, _, *rows = [line.strip("| ").split(" | ") for line in block.strip().split("\n")]
            yield dict(zip(header, zip(*rows, strict=True), strict=True))


def test_a_score_is_computed_and_kept(made):
    """The toy score of every range is the mean absolute feature; files hold it, its summary and its differences."""
    opened = open_experiment(load_experiment(made.run.path.parent.parent / "small.yaml"), WORLD)
    extractor = open_scorer(opened.setting, opened.experiment.metrics).extractor
    images = load_images(made.run.samples("euler"), range(64))
    wanted = [float(extractor.run(images[list(part)])[0].abs().mean()) for part in disjoint(64, 2)]
    for record in (made.json["scores"]["euler"], json.loads(made.run.metrics("euler").read_text())):
        assert [part["toy_score"] for part in record["ranges"]] == pytest.approx(wanted, rel=1e-5)
        assert record["summary"]["toy_score"]["mean"] == pytest.approx(statistics.fmean(wanted), rel=1e-5)
        assert record["names"]["named"] == "new-mixture"
    rows = {row["name"]: row for row in json.loads(made.run.comparison().read_text())["rows"]}
    ranges = [[part["toy_score"] for part in rows[name]["ranges"]] for name in ("dcw", "euler")]
    less = statistics.fmean(a - b for a, b in zip(*ranges, strict=True))
    assert rows["dcw"]["difference"]["toy_score"]["mean"] == pytest.approx(less)
    arms = json.loads((made.run.path.parent / "arms.json").read_text())["arms"]
    ours, first = arms["cold euler"]["toy_score"]["values"], arms["plain euler"]["toy_score"]["values"]
    less = statistics.fmean(a - b for a, b in zip(ours, first, strict=True))
    assert arms["cold euler"]["less_first"]["toy_score"]["mean"] == pytest.approx(less)


TITLES = {
    "fd": "FD-mixture", "is": "IS-mixture", "kid": "KID-mixture", "fd_floor": "floor of FD-mixture",
    "named": "new-mixture",
}  # fmt: skip
HEADS = {score.key: score.head(TITLES) for score in SHOWN}
WHERE = {  # page: digits fewer than the score's own, summaries of its rows
    "report.md": (0, lambda found: [found["scores"][name]["summary"] for name in ("euler", "dcw")]),
    "compare.md": (0, lambda found: [row["summary"] for row in found["compare"]["rows"]]),
    "arms.md": (1, lambda found: list(found["sweep"]["arms"].values())),
}


@pytest.mark.parametrize("score", SHOWN, ids=lambda score: score.key)
def test_every_score_reaches_every_table(made, score):
    """Its column stands on every page with the means that the files hold, and on the terminal."""
    head = HEADS[score.key] + (" (min, max)" if score is PRIMARY else "")
    for page, (fewer, summaries) in WHERE.items():
        cells = next(table[head] for table in tables(made.pages[page]) if head in table)
        means = [f"{summary[score.key]['mean']:.{score.digits - fewer}f}" for summary in summaries(made.json)]
        assert [cell.split()[0] for cell in cells] == means, page
    for page in ("report.html", "compare.html"):
        assert head in read(made.pages[page]).heads
    for name in ("scores", "curves", "compare", "sweep"):
        assert score.title.split()[0] in made.pages[f"{name} on the terminal"]  # whose heads are wrapped
    points = made.json["curves"]["euler"]["points"]
    shown = {"scores": [found["summary"] for found in made.json["scores"].values()],
             "curves": [point["summary"] for point in points]}  # fmt: skip
    for name, summaries in shown.items():
        for summary in summaries:
            entry = from_json(Entry, summary[score.key], "")
            low, high = entry.interval or (None, None)
            assert measured(entry.mean, low, high, digits=score.digits) in made.pages[f"{name} on the terminal"]
    curve = next(tables(made.pages["report.md"].split("## Over training")[1]))
    means = [f"{point['summary'][score.key]['mean']:.{score.digits}f}" for point in points]
    assert [cell.split()[0] for cell in curve[head.replace(HEADS["fd"], "mean") if score is PRIMARY else head]] == means


@pytest.mark.parametrize(
    "score", [score for score in SHOWN if score is not PRIMARY and not score.of_reference], ids=lambda score: score.key
)
def test_differences_of_every_score_are_shown(made, score):
    """On the pages of compare and sweep, in the score's own digits, better and worse by its own direction."""
    found = {row["name"]: row["difference"][score.key] for row in made.json["compare"]["rows"] if row["base"]}
    (table,) = [t for t in tables(made.pages["compare.md"]) if "base" in t and HEADS[score.key] in t]
    for name, cell in zip(table["sampler"], table[HEADS[score.key]], strict=True):
        less = found[name]
        clear = less["low"] > 0 or less["high"] < 0
        good = (less["mean"] < 0) == (score.better == "lower")
        assert cell.startswith(f"{less['mean']:+.{score.digits}f} [{less['low']:+.{score.digits}f}, ")
        assert cell.endswith(", no difference shown" if not clear else ", better" if good else ", worse")
    arms = made.json["sweep"]["arms"]
    table = next(tables(made.pages["arms.md"].split("## Other scores less plain's")[1]))
    for label, cell in zip(table["arm"], table[HEADS[score.key]], strict=True):
        assert cell.startswith(f"{arms[label]['less_first'][score.key]['mean']:+.{score.digits - 1}f} [")


def test_a_score_without_values_has_no_column(made):
    """It is null in the files and in no summary or table; so is one that is not asked for."""
    for score in (SILENT, *ASKED):
        for record in (made.json["scores"]["euler"], *made.json["compare"]["rows"]):
            assert [part[score.key] for part in record["ranges"]] == [None, None]
            assert score.key not in record["summary"]
        head = score.title if score is SILENT else score.on("mixture")
        assert not [name for name, page in made.pages.items() if head in page]


def test_a_pair_has_every_score(made, monkeypatch):
    """eval-fid of two sets: the toy score stands beside the others, in JSON and on the terminal."""
    monkeypatch.setattr(scores, "SCORES", EVERY)
    path = str(made.run.path.parent.parent / "images.npz")
    config = load_experiment(made.run.path.parent.parent / "small.yaml").metrics.model_copy(
        update={"features": "pixels"}
    )
    pair = score_pair(path, path, config, None, WORLD)
    record, text = to_json(pair), printed(terminal.show_pair, pair)
    assert {"first", "second", "features", "names", "images", "warnings", "made_with"} < record.keys()
    for score in EVERY:
        assert (record[score.key] is None) == (score.key in ("inception_score", "fd_floor", "silent") or score in ASKED)
        assert (record[score.key] is None) == (f"\n{score.head(record['names'])}  " not in text)
    assert record["kid"] != record["fd"] != record["toy_score"] > 0


def test_rows_of_before_a_score_are_made_again(made, monkeypatch):
    """What a sweep or a comparison keeps of a row is of the scores that were known then."""
    folder = made.run.path.parent.parent
    trial = sweep_trials(load_sweep(folder / "arms.yaml"), "arms")[0]
    assert not row_path(trial, folder / "runs").exists()
    for path in (made.run.path / "compare").glob("*.json"):
        assert json.loads(path.read_text())["facts"]["scores"] == [score.key for score in EVERY]
    monkeypatch.setattr(scores, "SCORES", EVERY)
    assert row_path(trial, folder / "runs").exists()


def test_a_file_of_another_version_is_refused(made, tmp_path):
    """The report names the file and the key."""
    folder = tmp_path / "runs" / "small"
    (folder / "metrics").mkdir(parents=True)
    (folder / "config.yaml").write_text(made.run.config.read_text())
    content = read_json(made.run.metrics("euler"))
    del content["summary"]["fd"]["min"]
    write_json(folder / "metrics" / "euler.json", content)
    experiment = load_experiment(write_config(tmp_path, **CHANGES))
    with pytest.raises(SnrkitError, match=r"metrics/euler\.json: summary\.fd\.min is missing; .* delete it and run"):
        terminal.make_report(experiment, tmp_path / "runs")
