"""No fault of the disk, and no kill, at any moment of any command makes a silent difference.

Every event of every command (tests/faults.py) fails in every way. Each time the command either ends as if nothing had
been, or in one sentence that names a file and a remedy, or is killed; and the same command again, undisturbed, leaves
the very folder that it leaves without a fault. `make faults` tries all points and prints how many, `make test` some.
"""

import contextlib
import errno

import pytest

from snrkit.base.sealed import write_json
from tests.faults import COMMANDS, KILL, Trial, tally

STRIDE = 211  # odd, so that the points that are tried rotate over the four ways to fail


@pytest.fixture(scope="module")
def trial(tmp_path_factory):
    """Makes the trial of a command; what commands before it leave is made once."""
    home, states = tmp_path_factory.mktemp("faults"), {}
    return lambda command: Trial(command, states, home)


def points(trial):
    """Every event with every way in which it may fail."""
    return [(at, how) for at in trial.events for how in trial.ways(at)]


def wrong(trial, tried):
    """What went wrong at these points."""
    outcomes = [trial.fail(at, how) for at, how in tried]
    return [str(outcome) for outcome in outcomes if outcome.wrong]


@pytest.mark.parametrize("command", COMMANDS)
def test_some_faults_make_no_silent_difference(trial, command):
    """One point in so many."""
    found = trial(command)
    assert wrong(found, points(found)[list(COMMANDS).index(command) :: STRIDE]) == []


@pytest.mark.parametrize(("command", "run"), [("train", "small"), ("sweep FILE", "sweep-edm-0")])
def test_checkpoints_that_are_not_kept_go_though_the_last_save_failed(trial, command, run):
    """It had its checkpoint, and the same command has nothing left to train."""
    found = trial(command)
    synced = [event for event in found.events if event[:2] == ("sync", f"runs/{run}/checkpoints")]
    assert wrong(found, [(synced[-1], errno.EIO), (synced[-1], KILL)]) == []


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_no_fault_makes_a_silent_difference(trial, command, capsys):
    """All points; prints a row of a table: command, events by kind, points tried, points with something wrong."""
    found = trial(command)
    tried = points(found)
    bad = wrong(found, tried)
    with capsys.disabled():
        print(f"| `{command}` | {tally(found)} | {len(tried)} | {len(bad)} |")
    assert bad == []


def test_the_harness_sees_a_command_that_writes_in_place(trial, monkeypatch):
    """Without a temporary file a kill leaves half a file, over which the same command stumbles."""

    def in_place(path, content, sync=True):
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as file:
            file.write(content)

    monkeypatch.setattr("snrkit.base.files.write_bytes", in_place)
    found = trial("train")
    torn = [(("write", "runs/small/config.yaml", 1), KILL)]
    assert "its checksum does not fit" in "".join(wrong(found, torn))


def test_the_harness_sees_an_error_that_is_hidden(trial, monkeypatch):
    """A command that ends well without what it should have written."""

    def careless(path, content):
        with contextlib.suppress(OSError):
            write_json(path, content)

    monkeypatch.setattr("snrkit.commands.eval_fid.write_json", careless)
    found = trial("eval-fid")
    place = next(event for event in found.events if event[0] == "open" and "metrics" in event[1])
    assert wrong(found, [(place, errno.EIO)])
