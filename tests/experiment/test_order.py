"""What a file counts is on the disk before it, and names outlast a loss of power: the order of what a disk is told."""

from pathlib import PurePosixPath

import pytest

from tests.faults import Trial


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    """What the disk is told by a command, in order: (what, path)."""
    home, states = tmp_path_factory.mktemp("order"), {}
    return lambda command: Trial(command, states, home)


def events_of(trial):
    return [event[:2] for event in trial.events]


def folder_of(path):
    return str(PurePosixPath(path).parent)


def last(events, event):
    return len(events) - 1 - events[::-1].index(event)


def test_images_are_on_the_disk_before_a_manifest_lists_them(told):
    """Each is flushed, and its folder, before the manifest gets its name for the last time."""
    events = events_of(told("sample"))
    listed = last(events, ("rename", "runs/small/samples/euler/manifest.json"))
    images = [path for what, path in events if what == "rename" and path.startswith("runs/small/samples/euler/0000")]
    assert len(images) == 8
    for path in images:
        assert events.index(("rename", path)) < events.index(("sync", path)) < listed
        assert events.index(("sync", folder_of(path))) < listed


def test_the_log_is_on_the_disk_before_a_checkpoint_counts_its_lines(told):
    """So many lines are flushed before a checkpoint has its name, whatever is written to the log meanwhile."""
    trial, log = told("train"), "runs/small/train.jsonl"
    events = events_of(trial)
    named = {
        path: place
        for place, (what, path) in enumerate(events)
        if what == "rename" and folder_of(path) == "runs/small/checkpoints" and PurePosixPath(path).name.isdigit()
    }
    assert len(named) == 4
    kept = {path: place for path, place in named.items() if f"{path}/state.json" in trial.wanted}
    assert len(kept) == 2
    for path, place in kept.items():
        flushed = last(events[:place], ("sync", log))
        (state,) = trial.wanted[f"{path}/state.json"]
        assert events[:flushed].count(("write", log)) >= state["numbers"]["log_lines"] > 0


@pytest.mark.parametrize("command", ["train", "eval-fid", "average RUN --width 0.2", "fit-estimator"])
def test_a_name_is_on_the_disk_when_a_command_ends(told, command):
    """After the last file that a folder was given the folder is flushed; what is deleted may come back."""
    events = events_of(told(command))
    for folder in {folder_of(path) for what, path in events if what == "rename" and not path.endswith(".tmp")}:
        final = max(
            place
            for place, (what, path) in enumerate(events)
            if what == "rename" and folder_of(path) == folder and not path.endswith(".tmp")
        )
        assert ("sync", folder) in events[final:], folder
