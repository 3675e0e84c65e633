"""What is seen of a command while it works, where there is a terminal and where there is none."""

import io
import json
import logging
import os
import re
import sys
import threading
import time

import pytest
import torch
from rich.console import Console
from typer.main import get_command

from snrkit.base.gradual import Done, finished
from snrkit.commands import progress
from snrkit.commands.cli import app
from snrkit.commands.progress import EVALUATIONS, READINGS, Bars, Lines, Settings, bar, count, follow, loading, shown_as
from snrkit.data.dataset import memory_dataset, opening, split
from snrkit.data.files import Folder
from snrkit.metrics import classifier
from tests.small import SMALL, load_images, snrkit, write_config


class Clock:
    """A time that passes when it is told to, or by `step` whenever it is asked for."""

    def __init__(self, step=0.0):
        self.now, self.step = 0.0, step

    def __call__(self):
        self.now += self.step
        return self.now


class Seen:
    """A display that notes all counts of every bar, by its title, and its total at the end."""

    def __init__(self):
        self.counts, self.totals, self.nested = {}, {}, []

    def begin(self, bar):
        self.nested.append(bar.what)
        self.counts.setdefault(bar.what, []).append(bar.done)

    def changed(self, bar):
        self.counts[bar.what].append(bar.done)

    def end(self, bar):
        assert self.nested.pop() == bar.what
        self.counts[bar.what].append(bar.done)
        self.totals[bar.what] = bar.total


@pytest.fixture
def seen(monkeypatch):
    """All that bars show in commands that this test runs, however fast."""
    display = Seen()
    monkeypatch.setattr(progress, "OFTEN", -1.0)
    monkeypatch.setattr(Settings, "shows", lambda settings: display)
    return display


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with a short training, of which images, shifts and scores can be made."""
    folder = tmp_path_factory.mktemp("trained")
    write_config(folder, train={**SMALL["train"], "images": 320}, sample={"seeds": "0-31", "batch": 16})
    snrkit(folder, "train", "-q")
    return folder


def plain(every, clock):
    """(A display of plain lines, what it prints)."""
    file = io.StringIO()
    return Lines(Console(file=file), every, clock, beat=0), file


def test_a_plain_line_comes_at_the_given_interval_and_no_other():
    """One every 30 seconds of the clock, with what is done by then, how fast, and how long it may take."""
    clock = Clock()
    display, file = plain(30, clock)
    with shown_as(Settings(display=display, clock=clock)), bar("sampling euler", 100) as progress_bar:
        for second in range(1, 71):
            clock.now += 1
            progress_bar.update(second, f"loss {second}")
    assert file.getvalue().splitlines() == [
        "sampling euler: 30 of 100 images, 1.0/s, 1:10 left, loss 30",
        "sampling euler: 60 of 100 images, 1.0/s, 0:40 left, loss 60",
    ]


def test_a_plain_line_comes_where_nothing_is_counted_for_long():
    """A part that says nothing of itself is told of when the time has come: somebody looks."""
    clock = Clock()
    display, file = plain(30, clock)
    with shown_as(Settings(display=display, clock=clock)), bar("comparing", 4, unit="rows"), bar("reading"):
        clock.now = 31
        display.look()
        clock.now = 60.9
        display.look()
    assert file.getvalue() == "comparing: 0 of 4 rows, 0:31; reading: 0:31\n"


def test_the_thread_of_plain_lines_ends_with_the_last_bar():
    """It looks while a bar is shown, and is gone after that."""
    looked = []
    display = Lines(Console(file=io.StringIO()), 1e9, Clock(), beat=0.001)
    display.look = lambda: looked.append(True)
    with shown_as(Settings(display=display)), bar("waiting"):
        thread = next(t for t in progress.threading.enumerate() if t.name == "snrkit-lines")
        while not looked:
            thread.join(0.01)
    thread.join(5)
    assert not thread.is_alive()


def test_plain_lines_are_no_wider_than_columns_say(monkeypatch):
    """However long names and notes are."""
    monkeypatch.setenv("COLUMNS", "40")
    clock = Clock()
    display, file = plain(1, clock)
    with shown_as(Settings(display=display, clock=clock)), bar("a name " * 20, 10) as progress_bar:
        clock.now = 2
        progress_bar.update(1, "a note " * 20)
    (line,) = file.getvalue().splitlines()
    assert len(line) == 40


def test_plain_lines_are_whole_where_nothing_says_how_wide(monkeypatch):
    """A file has no width."""
    monkeypatch.delenv("COLUMNS", raising=False)
    clock = Clock()
    display, file = plain(1, clock)
    with shown_as(Settings(display=display, clock=clock)), bar("a name " * 20, 10) as progress_bar:
        clock.now = 2
        progress_bar.update(1, "the newest note")
    assert file.getvalue().rstrip().endswith("the newest note")


def test_a_bar_says_rate_and_time_left_of_the_last_half_minute():
    """What was done before it began is no part of the rate; a slow beginning is forgotten."""
    clock = Clock()
    with shown_as(Settings(display=Seen(), clock=clock)), bar("training", 1000, done=500) as progress_bar:
        for second, done in ((10, 501), (50, 541), (90, 741)):
            clock.now = second
            progress_bar.update(done)
        assert progress_bar.told(clock.now) == "741 of 1,000 images, 5.0/s, 0:52 left"
        clock.now = 4000
        assert progress_bar.told(clock.now).endswith("left")
        progress_bar.update(1000, "loss 0.1")
        assert progress_bar.told(clock.now).endswith("1:06:40, loss 0.1")


def test_a_bar_that_breaks_off_at_a_time_has_no_more_left_than_until_then():
    """However much of its total is left; without one, what the rate says."""
    clock = Clock()
    with shown_as(Settings(display=Seen(), clock=clock)), bar("certifying", 16) as progress_bar:
        clock.now = 10
        progress_bar.update(1)
        assert progress_bar.told(clock.now) == "1 of 16 images, 10.0 s each, 2:30 left"
        progress_bar.until = 40
        assert progress_bar.told(clock.now) == "1 of 16 images, 10.0 s each, 0:30 left"
        assert progress_bar.told(50).endswith("0:00 left")


@pytest.mark.parametrize(("every", "at"), [(30, 29), (2, 1.9), (0.1, 0.095)])
def test_a_line_is_never_later_than_asked_for(every, at):
    """It is printed by the last look before, a second at most and a twentieth of the time at most ahead."""
    clock, file = Clock(), io.StringIO()
    display = Lines(Console(file=file), every, clock, beat=1.0)
    with shown_as(Settings(display=display, clock=clock)), bar("training", 10) as progress_bar:
        clock.now = at - 0.002
        progress_bar.update(1)
        display.look()
        assert file.getvalue() == ""
        clock.now = at + 0.002
        display.look()
        assert "training" in file.getvalue()


def test_a_terminal_shows_bars_and_leaves_the_outermost():
    """Drawn below each other while both are at work, with their titles as they are; the cursor is left as it is."""
    file, clock = io.StringIO(), Clock(1.0)
    console = progress.SteadyConsole(file=file, force_terminal=True, width=100)
    with shown_as(Settings(display=Bars(console, clock), clock=clock)), bar("outer [red]", 2, unit="rows") as outer:
        for name in ("first", "second"):
            with bar(name, 1):
                pass
            outer.advance(1, f"{name} done")
    said = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", file.getvalue())
    assert "outer [red]" in said.splitlines()[-1]
    assert "2 of 2 rows" in said.splitlines()[-1]
    assert "second done" in said.splitlines()[-1]
    assert "\x1b[?25l" not in file.getvalue()


def test_what_is_counted_when_a_bar_has_ended_is_passed_over():
    """A thread that reads ahead may come to it late; alone, and while another bar is drawn."""
    file, clock = io.StringIO(), Clock(1.0)
    console = progress.SteadyConsole(file=file, force_terminal=True, width=100)
    with shown_as(Settings(display=Bars(console, clock), clock=clock)):
        with bar("first") as first:
            pass
        first.advance(1)
        with bar("second"):
            first.advance(1)
    assert first.done == 2


def test_the_counts_of_a_walk_rise_at_every_step_and_end_at_their_total(trained, seen):
    """Euler with 4 steps on two batches of 16: eight evaluations of 16 images each."""
    snrkit(trained, "sample", "--sampler", "euler")
    counts = list(dict.fromkeys(seen.counts["sampling euler"]))
    assert counts == list(range(0, 129, 16))
    assert seen.totals["sampling euler"] == 128


def test_training_moves_its_bar_at_every_step(tmp_path, seen):
    """Five steps of 64 images."""
    write_config(tmp_path, train={**SMALL["train"], "images": 320})
    snrkit(tmp_path, "train")
    assert list(dict.fromkeys(seen.counts["training"])) == list(range(0, 321, 64))
    assert seen.totals["training"] == 320


def test_measuring_and_scoring_move_bars_within_a_sampler(trained, seen):
    """States by evaluation, features by batch; every bar that is counted to its end ends at its total."""
    snrkit(trained, "sample", "-q", "--sampler", "euler")
    snrkit(trained, "measure-shift", "--sampler", "euler", "--set", "shift.probes=[response]")
    snrkit(trained, "eval-fid", "--sampler", "euler")
    states = seen.counts["states"]
    assert states == sorted(states)
    assert len(set(states)) > 2 * 4
    assert len(set(seen.counts["probe response"])) > 2
    assert max(seen.counts["features, range 2 of 2"]) == seen.totals["features, range 2 of 2"] == 16
    for what in ("states", "measuring shift", "scoring"):
        assert seen.counts[what][-1] == seen.totals[what], what


def test_modules_are_counted_while_they_are_imported(seen):
    """By a thread that ends with the bar: what takes seconds before there is any work is no silence."""
    with loading("starting"):
        while not any(seen.counts["starting"]):
            time.sleep(0.01)
        assert "snrkit-loading" in {thread.name for thread in threading.enumerate()}
    assert 100 < max(seen.counts["starting"]) <= len(sys.modules)
    assert "snrkit-loading" not in {thread.name for thread in threading.enumerate()}


def test_results_are_the_same_bits_with_progress_and_without(trained, seen, monkeypatch):
    """Images and shifts, with a display that is told of every step and with none."""
    run = trained / "runs" / "small"
    found = []
    for quiet in (True, False):
        if quiet:
            monkeypatch.setattr(Settings, "shows", lambda settings: progress.NOWHERE)
        else:
            monkeypatch.setattr(Settings, "shows", lambda settings: seen)
        snrkit(trained, "sample", "--overwrite", "--sampler", "ancestral")
        snrkit(trained, "measure-shift", "--sampler", "ancestral")
        images = load_images(run / "samples" / "ancestral", range(32))
        found.append((images, (run / "shift" / "ancestral.json").read_bytes()))
    assert torch.equal(found[0][0], found[1][0])
    assert found[0][1] == found[1][1]
    assert seen.counts["states"]


def test_quiet_prints_nothing_and_a_file_gets_lines_alone(trained):
    """On stderr: nothing with -q; without a terminal a line every --log-every seconds at most, and no bar."""
    assert snrkit(trained, "sample", "-q", "--overwrite", "--sampler", "euler").stderr == ""
    asked = ("measure-shift", "--sampler", "euler", "--log-every", "0.1")
    lines = snrkit(trained, *asked).stderr.splitlines()
    told = [line for line in lines if not line.startswith("shift.images is")]
    assert told
    assert all(re.search(r"\d:\d\d", line) and "\x1b" not in line and len(line) <= 200 for line in told)


def test_a_command_ends_with_what_was_made_and_what_comes_next(trained):
    """With its absolute path, and the next command to be copied; where a script reads, JSON stands alone."""
    said = snrkit(trained, "sample", "-q", "--sampler", "euler", "--set", "sample.npz=false").stdout
    then = f"snrkit eval-fid {trained}/small.yaml --set sample.npz=false --runs {trained}/runs"
    assert said == f"images of euler: {trained}/runs/small/samples\nnext: {then}\n"
    assert "euler" in json.loads(snrkit(trained, "eval-fid", "-q", "--json", "--sampler", "euler").stdout)


def test_verbose_says_what_each_part_took(trained):
    """The title of every bar, with what was counted and the time."""
    said = snrkit(trained, "eval-fid", "-v", "--sampler", "euler", check=False).stderr
    assert re.search(r"(?m)^opening small: \d:\d\d$", said)


def test_messages_go_to_python_s_logger(capsys):
    """Those of the logger `snrkit`: warnings with -q too, others without it, details with -v alone."""
    log = logging.getLogger("snrkit")
    for asked, heard in (({}, "ab"), ({"quiet": True}, "a"), ({"verbose": True}, "abc")):
        with progress.hear():
            progress.ask(**asked)
            log.warning("a")
            log.info("b")
            log.debug("c")
        assert capsys.readouterr().err.replace("\n", "") == heard
    log.warning("nobody hears it")
    assert not log.handlers


SHORT = {"average", "export", "validate", "schema"}  # commands that take no time


def commands(group, name=""):
    """(Name, command) of all commands of the tool."""
    for key, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, f"{key} ")
        else:
            yield f"{name}{key}", command


def test_every_command_can_be_quiet_and_verbose():
    """-q and -v everywhere, and --log-every wherever a command may take long."""
    for name, command in commands(get_command(app)):
        options = {option for parameter in command.params for option in parameter.opts}
        assert {"-q", "-v"} <= options, name
        assert ("--log-every" in options) == (name not in SHORT), name


def test_resources_move_the_innermost_bar_that_counts_them():
    """Evaluations go to the bar of evaluations, whatever stands inside it; in a forked process nothing is counted."""
    with shown_as(Settings(display=Seen())), bar("outer", 9, unit=EVALUATIONS) as outer, bar("inner") as inner:
        count(EVALUATIONS, 3)
        count(READINGS, 5)
        with bar("innermost", unit=EVALUATIONS) as innermost:
            count(EVALUATIONS, 4)
        pid = os.getpid()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(os, "getpid", lambda: pid + 1)
            count(EVALUATIONS, 100)
    assert (outer.done, inner.done, innermost.done) == (3, 0, 4)


def test_gradual_work_has_a_bar_for_each_part():
    """It ends with what it makes; a part that was estimated ends at what there was."""
    display = Seen()

    def work():
        yield Done("first", 0, 2)
        yield Done("first", 2, 2, note="half")
        yield Done("second", 0, 10, EVALUATIONS)
        count(EVALUATIONS, 7)
        return "made"

    with shown_as(Settings(display=display, clock=Clock(1.0))):
        assert follow(work()) == "made"
    assert display.counts["first"][-1] == 2
    assert (display.counts["second"][-1], display.totals["second"]) == (7, 7)
    assert finished(work()) == "made"


def test_a_total_that_was_too_small_grows():
    """A bar never shows more than all."""
    with shown_as(Settings(display=Seen())), bar("states", 10, unit=EVALUATIONS) as made:
        count(EVALUATIONS, 12)
    assert made.told(10).startswith("12 of 12 evaluations")


def test_opening_a_folder_says_how_many_images_are_read(tmp_path):
    """From none to all, and opens the same set."""
    from PIL import Image

    for index in range(150):
        Image.new("L", (4, 4), index).save(tmp_path / f"{index:03d}.png")
    work, counts = opening(Folder(path=tmp_path)), []
    while True:
        try:
            done = next(work)
        except StopIteration as end:
            dataset = end.value
            break
        counts.append((done.count, done.total))
    assert counts[0] == (0, 150)
    assert counts[-1] == (150, 150)
    assert counts == sorted(counts)
    assert dataset.fingerprint == Folder(path=tmp_path).open().fingerprint


def test_training_the_classifier_says_how_far_it_is(tmp_path, monkeypatch):
    """Batch by batch with the loss, up to its total, to the same weights as without anybody looking."""
    monkeypatch.setenv("SNRKIT_CACHE", str(tmp_path))
    monkeypatch.setattr(classifier, "IMAGES", 512)
    dataset = memory_dataset("noise", torch.rand(64, 1, 8, 8) * 2 - 1, torch.arange(64) % 2)
    display, parts = Seen(), split(64, 0.1)
    with shown_as(Settings(display=display, clock=Clock(1.0))):
        watched = follow(classifier.training_classifier(dataset, parts))
    assert list(dict.fromkeys(display.counts["training the classifier"])) == [0, 128, 256, 384, 512]
    for path in tmp_path.glob("classifier-*"):
        path.unlink()
    assert classifier.train_classifier(dataset, parts).key == watched.key
