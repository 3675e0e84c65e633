"""`snrkit compare` says what it will do before it does it, times what it is asked to, and warns before it concludes."""

import re
import shutil
from functools import partial
from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch

from snrkit.base.distributed import World
from snrkit.base.errors import Stopped
from snrkit.base.records import read_record
from snrkit.commands import compare
from snrkit.commands.compare import Timed, announced, comparison_plan, evaluations, run_comparing, told_apart
from snrkit.commands.compare_rows import comparison_layout
from snrkit.commands.train import run_training
from snrkit.experiment.experiment import load_experiment
from snrkit.experiment.run import Run
from snrkit.metrics.paired import Difference
from snrkit.reports import terminal
from tests.commands.test_scores import printed
from tests.small import SMALL, call, write_config

WORLD = World(0, 1, torch.device("cpu"))
EULER = SMALL["samplers"]["euler"]
CHANGES = {
    "samplers": {"euler": EULER, "dcw": {**EULER, "corrections": [{"kind": "dcw", "pixel": 0.05}]}},
    "train": {**SMALL["train"], "images": 128, "save_every": 128, "averages": [], "warmup": 100},
    "sample": {"seeds": "0-49", "batch": 50},
    "compare": {"solvers": [{"kind": "heun"}], "rounds": 0, "timed_images": 2},
}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """(experiment, folder of runs, record) of a comparison that was not timed."""
    folder = tmp_path_factory.mktemp("compared")
    experiment = load_experiment(write_config(folder, **CHANGES))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SNRKIT_CACHE", str(folder / "cache"))
        run_training(experiment, folder / "runs", WORLD, True)
        yield experiment, folder / "runs", run_comparing(experiment, folder / "runs", WORLD, True)


def test_what_will_be_done_is_said_with_what_nobody_asked_for(made):
    """Rows, those that are set beside, and evaluations: images sampled, measured, held out and trained on."""
    experiment, _, _ = made
    rows = comparison_layout(experiment)
    assert set(rows) - set(experiment.samplers) == {"heun-3"}
    said = announced(experiment, rows)
    assert said.startswith("3 rows of 50 images, beside yours heun-3 (fewer by compare.solvers): ")
    assert f"{evaluations(experiment, rows):,} evaluations" in said
    plan = comparison_plan(experiment, WORLD)
    assert said in plan
    assert "dcw: 4 evaluations per image, beside euler" in plan
    assert re.search(
        rf"{evaluations(experiment, rows):,} evaluations of an image take about [\d.]+ (s|minutes) here", plan
    )


def test_a_score_that_few_images_shift_decides_nothing():
    """Neither for a row nor for its base, whatever the interval; another score decides as ever."""
    clear = Difference(-2.0, -3.0, -1.0)
    enough, few = (SimpleNamespace(decided_by="fd", biased=biased) for biased in (set(), {"fd"}))
    assert told_apart(enough, enough, clear) == "better"
    assert told_apart(few, enough, clear) == told_apart(enough, few, clear) == "too few images"
    assert told_apart(SimpleNamespace(decided_by="kid", biased={"fd"}), enough, clear) == "better"


def test_what_is_announced_is_what_the_network_evaluates(made, monkeypatch, tmp_path):
    """Of all rows, and of those alone that are not there yet."""
    experiment, runs, _ = made
    rows, seen, logged = comparison_layout(experiment), [], []
    monkeypatch.setattr("snrkit.commands.opening._evaluated", lambda network, given, answer: seen.append(len(given[0])))
    monkeypatch.setattr(compare, "evaluation_seconds", lambda *given: 1.0)
    monkeypatch.setattr(compare.log, "info", logged.append)
    shutil.copytree(runs, tmp_path / "runs")
    shutil.rmtree(tmp_path / "runs/small/compare")
    run_comparing(experiment, tmp_path / "runs", WORLD, True)
    assert sum(seen) == evaluations(experiment, rows)
    assert any(text.startswith("3 of them are to be made") for text in logged)
    seen.clear()
    (tmp_path / "runs/small/compare/dcw.json").unlink()
    run_comparing(experiment, tmp_path / "runs", WORLD, True)
    assert any(text.startswith("1 of them is to be made") for text in logged)
    assert sum(seen) == evaluations(experiment, {"dcw": rows["dcw"]}) - 50 * rows["dcw"].nfe  # whose images are there
    seen.clear()
    run_comparing(experiment, tmp_path / "runs", WORLD, True)
    assert not seen


def test_a_margin_that_comes_later_is_said_to(made, monkeypatch):
    """A comparison of the run is there without it."""
    experiment, runs, _ = made
    warned = []
    monkeypatch.setattr(compare.log, "warning", warned.append)
    later = experiment.model_copy(update={"compare": experiment.compare.model_copy(update={"margin": 1e9})})
    record = run_comparing(later, runs, WORLD, True)
    assert "had none: one that is chosen after scores were seen shows nothing" in warned[0]
    shown = [row.beside.verdict for row in record.rows if row.beside is not None]
    assert "no difference shown" not in shown
    assert "1e+09" in (runs / "small/compare.md").read_text()
    run_comparing(experiment, runs, WORLD, True)


def test_what_was_not_timed_has_no_column(made):
    """Neither on the page nor on a terminal, and no number stands in for it."""
    _, runs, record = made
    assert all(row.seconds_per_image is None for row in record.rows)
    assert all(row.beside is None or row.beside.overhead is None for row in record.rows)
    page, shown = (
        (runs / "small/compare.md").read_text(),
        printed(partial(terminal.show_comparison, every=True), record),
    )
    assert "overhead |" not in page
    assert "ms/image |" not in page
    assert "overhead" not in shown
    assert not Run(runs / "small").compared_times.exists()


def test_rounds_of_timing_are_kept_and_not_made_again(made, monkeypatch):
    """An interrupted one goes on with the rounds that are missing, after one that warms up again."""
    experiment, runs, _ = made
    rounds, stored = compare._rounds, Run(runs / "small").compared_times

    def broken(*given):
        for number, seconds in enumerate(rounds(*given)):
            if number == 2:
                raise KeyboardInterrupt
            yield seconds

    timed = experiment.model_copy(update={"compare": experiment.compare.model_copy(update={"rounds": 2})})
    with monkeypatch.context() as patch:
        patch.setattr(compare, "_rounds", broken)
        with pytest.raises(Stopped, match="every row so far is kept"):
            run_comparing(timed, runs, WORLD, True)
    assert len(read_record(Timed, stored).seconds) == 1
    first = run_comparing(timed, runs, WORLD, True)
    assert len(read_record(Timed, stored).seconds) == 2
    with monkeypatch.context() as patch:
        patch.setattr(compare, "_rounds", None)  # is not called
        again = run_comparing(timed, runs, WORLD, True)
    assert [row.seconds_per_image for row in first.rows] == [row.seconds_per_image for row in again.rows]
    assert all(row.seconds_per_image > 0 for row in again.rows)


def test_warnings_stand_before_the_verdict(made):
    """On a terminal; on the page below it and above all else. A network of two steps is said to have hardly learned."""
    _, runs, record = made
    hardly = "2 steps of training are a trial of the commands"
    assert record.warnings[0].startswith(hardly)
    shown, page = " ".join(printed(terminal.show_comparison, record).split()), (runs / "small/compare.html").read_text()
    for before, after in pairwise([hardly, "beside their bases", "heun-3"]):
        assert shown.index(before) < shown.index(after)
    assert page.index(hardly) < page.rindex("At a glance")


def test_the_page_s_command_makes_it_again(made, monkeypatch):
    """In the folder that holds the run, as the page says."""
    _, runs, _ = made
    page = runs / "small/compare.md"
    before = page.read_text()
    shown = (runs / "small/compare.html").read_text()
    assert "To repeat it, in the folder that holds the run:" in shown
    command = re.search(r">snrkit (compare [^<]+)<", shown)
    monkeypatch.chdir(runs)
    page.unlink()
    done = call(*command[1].split(), "-q")
    assert done.returncode == 0, done.stderr
    assert [line for line in page.read_text().splitlines() if "ms/image" not in line][:3] == before.splitlines()[:3]
