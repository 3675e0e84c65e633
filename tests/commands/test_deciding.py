"""metrics.decide names the score that tables begin with, that verdicts are about and that selects a checkpoint."""

import numpy as np
import pytest
import torch

from snrkit.base.distributed import World
from snrkit.base.errors import SnrkitError
from snrkit.base.records import from_json
from snrkit.base.sealed import read_json
from snrkit.commands.compare import run_comparing
from snrkit.commands.eval_fid import run_curves, run_scoring, score_pair
from snrkit.commands.sample import run_sampling
from snrkit.commands.train import run_training
from snrkit.experiment.experiment import load_experiment
from snrkit.experiment.run import Run
from snrkit.metrics.paired import verdict
from snrkit.metrics.records import SamplerScores
from snrkit.metrics.scores import by_key
from snrkit.reports import terminal
from tests.commands.test_scores import printed, tables
from tests.small import SMALL, load_images, write_config

WORLD = World(0, 1, torch.device("cpu"))
EULER = SMALL["samplers"]["euler"]
CHANGES = {
    "samplers": {"euler": EULER, "dcw": {**EULER, "corrections": [{"kind": "dcw", "pixel": 0.05}]}},
    "train": {**SMALL["train"], "images": 128, "save_every": 64, "augment": None},
    "network": {**SMALL["network"], "augment": False, "dropout": 0.0},
    "sample": {"seeds": "0-199", "batch": 100},
    "metrics": {**SMALL["metrics"], "decide": "fd_infinity", "more": ["sliced"]},
    "compare": {"rounds": 1, "timed_images": 2},
}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """(run, pages by name, records by command) of an experiment that FD-infinity decides."""
    folder = tmp_path_factory.mktemp("deciding")
    runs, run = folder / "runs", Run(folder / "runs" / "small")
    experiment = load_experiment(write_config(folder, **CHANGES))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SNRKIT_CACHE", str(folder / "cache"))
        run_training(experiment, runs, WORLD, True)
        run_sampling(experiment, runs, WORLD, quiet=True)
        found = {
            "scores": run_scoring(experiment, runs, WORLD, quiet=True),
            "curves": run_curves(experiment, runs, WORLD, ["euler"], "last 2", quiet=True),
            "compare": run_comparing(experiment, runs, WORLD, quiet=True),
        }
        shows = (terminal.show_scores, terminal.show_curves, terminal.show_comparison)
        pages = {name: printed(show, found[name]) for name, show in zip(found, shows, strict=True)}
        patch.setattr(terminal, "_print", lambda header, rows: None)
        terminal.show_report(*terminal.make_report(experiment, runs))
        pages |= {path.name: path.read_text() for path in run.path.glob("*.md")}
    return run, pages, found


def test_it_is_kept_which_score_decides(made):
    """In the scores of a sampler, in a curve and in a comparison."""
    run, _, _ = made
    assert read_json(run.metrics("dcw"))["decided_by"] == "fd_infinity"
    assert read_json(run.curve("euler"))["selected_by"] == "fd_infinity"
    assert read_json(run.comparison())["decided_by"] == "fd_infinity"


def test_every_table_begins_with_it_and_its_interval(made):
    """FD-infinity with 95 % in the report and in compare, and on the terminal; FD, its floor and SW2^2 stand behind."""
    _, pages, found = made
    head = "FD∞-pixel [95 %]"
    for page, summaries in (
        ("report.md", [found["scores"][name].summary for name in ("euler", "dcw")]),
        ("compare.md", [row.summary for row in found["compare"].rows]),
    ):
        table = next(table for table in tables(pages[page]) if head in table)
        heads = list(table)
        assert heads.index(head) < min(heads.index(each) for each in ("FD-pixel", "floor of FD-pixel", "SW2^2-pixel"))
        for cell, summary in zip(table[head], summaries, strict=True):
            entry = summary["fd_infinity"]
            assert cell == f"{entry.mean:.4f} [{entry.interval[0]:.4f}, {entry.interval[1]:.4f}]"
            assert entry.interval[0] < entry.mean < entry.interval[1]
        assert "FD-pixel (min, max)" not in pages[page]
    assert "Verdicts go by FD∞-pixel, as metrics.decide says." in pages["compare.md"]
    for name in ("scores", "compare"):
        assert "FD∞" in pages[name]
    assert "selected by this score" in pages["curves"]


def test_the_verdict_is_about_it(made):
    """Of its differences over ranges of equal seeds."""
    _, _, found = made
    row = next(row for row in found["compare"].rows if row.name == "dcw")
    less = row.beside.difference["fd_infinity"]
    values = [
        [part.values["fd_infinity"] for part in next(r for r in found["compare"].rows if r.name == name).ranges]
        for name in (row.name, row.base)
    ]
    assert less.mean == pytest.approx(np.mean(values[0]) - np.mean(values[1]))
    assert row.beside.verdict == verdict(less)


def test_the_checkpoint_is_selected_by_it(made):
    """The one whose mean is least."""
    _, _, found = made
    curve = found["curves"]["euler"]
    best = min(curve.points, key=lambda point: point.summary["fd_infinity"].mean)
    assert curve.selected_images == best.checkpoint_images


def test_a_score_that_cannot_be_had_does_not_decide(tmp_path, made, monkeypatch):
    """Of 200 images there is no FD-infinity by 64 features; by 4 there is, and the floor, on the terminal too."""
    monkeypatch.setenv("SNRKIT_CACHE", str(tmp_path))
    run, _, _ = made
    images = load_images(run.samples("euler"), range(200)).permute(0, 2, 3, 1).numpy()
    for name, rows in (("a", images[:100]), ("b", images[100:])):
        np.savez(tmp_path / f"{name}.npz", rows)
    config = load_experiment(run.path.parent.parent / "small.yaml").metrics
    sides = [str(tmp_path / f"{name}.npz") for name in "ab"]
    pair = score_pair(*sides, config, None, WORLD)
    text = printed(terminal.show_pair, pair)
    assert pair.scores.values["fd_infinity"] < pair.scores.values["fd"]
    for key in ("fd_infinity", "fd_floor", "sliced"):
        assert f"\n{by_key(key).on('pixel')}  " in text
    many = config.model_copy(update={"pixel_components": 64})
    with pytest.raises(SnrkitError, match=r"metrics\.decide: fd_infinity cannot be had of 100 images"):
        score_pair(*sides, many, None, WORLD)


def test_files_of_before_are_read(made, tmp_path):
    """Without errors and without a score that decides: FD leads, as it did."""
    run, _, _ = made
    record = read_json(run.metrics("euler"))
    del record["decided_by"]
    for part in record["ranges"]:
        del part["errors"]
    for entry in record["summary"].values():
        del entry["error"]
    found = from_json(SamplerScores, record, tmp_path)
    assert (found.decided_by, found.ranges[0].errors, found.summary["fd"].interval) == ("fd", {}, None)
