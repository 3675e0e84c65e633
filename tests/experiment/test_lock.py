"""The lock of a run directory, links in it, what killed commands left, and what happens to a damaged checkpoint."""

import contextlib
import errno
import fcntl
import os
import platform
import socket
from pathlib import Path

import pytest
import yaml

from snrkit.base.errors import BusyError, RunError
from snrkit.base.files import remove_abandoned
from snrkit.checkpoints.ours import list_checkpoints
from snrkit.experiment.lock import beside, check_links, locked
from snrkit.experiment.run import Run
from tests.faults import COMMANDS, GONE, UNET, line, quick, start
from tests.small import call, snrkit, written
from tests.training.test_train import log_without_times

KNOWN = {}  # what analyze computed once
WRITERS = [command for command in COMMANDS if not command.startswith(("run", "train --fall-back", "data", "init"))]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A folder in which a tiny run was trained, sampled, measured and scored; and the trunk of a run of a sweep."""
    folder = tmp_path_factory.mktemp("finished")
    start(folder, network=yaml.safe_load(UNET))
    snrkit(folder, "run", "-q")
    (folder / "runs" / "sweep-edm-0").mkdir()
    return folder


def weights(run):
    """All tensors of the last checkpoint, as they lie in their files."""
    newest = list_checkpoints(run / "checkpoints")[-1]
    return {path.name: path.read_bytes() for path in newest.glob("*.safetensors")}


def fails(*numbers):
    """A system call that ends in these errors, one after the other."""
    left = list(numbers)

    def call(*_):
        raise OSError(left[0], os.strerror(left.pop(0)))

    return call


def test_a_busy_run_says_who_works_in_it(tmp_path):
    """Process and machine of the one that holds the lock; it is free again when the block ends."""
    run = Run(tmp_path / "run")
    with locked(run):
        with pytest.raises(BusyError, match=rf"\(process {os.getpid()} on {platform.node()} since 2"), locked(run):
            pass
        assert (run.path / ".lock").read_text().startswith(f"process {os.getpid()} on {platform.node()} since ")
    with locked(run):
        pass


@pytest.mark.parametrize("number", [errno.EWOULDBLOCK, errno.EACCES])
def test_a_lock_that_another_holds_is_busy(tmp_path, monkeypatch, number):
    """However the system says it, and where the holder has not said who it is."""
    monkeypatch.setattr(fcntl, "flock", fails(number))
    with pytest.raises(BusyError, match="which does not say who it is"), locked(Run(tmp_path)):
        pass


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOTSUP, errno.EINVAL])
def test_a_file_system_without_locks_is_not_busy(tmp_path, monkeypatch, number):
    """The sentence says so, and what to do."""
    monkeypatch.setattr(fcntl, "flock", fails(number))
    with pytest.raises(RunError, match="has no locks, which keep two") as refused, locked(Run(tmp_path)):
        pass
    assert not isinstance(refused.value, BusyError)
    assert str(tmp_path) in str(refused.value)
    assert "--runs with a folder on another disk" in str(refused.value)


def test_a_lock_that_is_a_link_is_refused_and_its_target_kept(tmp_path):
    """Neither truncated nor written to; a link to nowhere makes nothing there."""
    (tmp_path / "run").mkdir()
    (tmp_path / "precious").write_text("all of it")
    for target in ("precious", "nowhere"):
        (tmp_path / "run" / ".lock").symlink_to(tmp_path / target)
        with (
            pytest.raises(RunError, match="cannot be opened \\(it is a link\\); delete it"),
            locked(Run(tmp_path / "run")),
        ):
            pass
        (tmp_path / "run" / ".lock").unlink()
    assert (tmp_path / "precious").read_text() == "all of it"
    assert not (tmp_path / "nowhere").exists()


def test_a_lock_that_is_another_file_too_is_refused(tmp_path):
    """A second name of a file elsewhere."""
    (tmp_path / "run").mkdir()
    (tmp_path / "precious").write_text("all of it")
    (tmp_path / "run" / ".lock").hardlink_to(tmp_path / "precious")
    with pytest.raises(RunError, match="is no file of its own"), locked(Run(tmp_path / "run")):
        pass
    assert (tmp_path / "precious").read_text() == "all of it"


def make_fifo(path):
    os.mkfifo(path)


def make_socket(path):
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(path))


def make_folder(path):
    path.mkdir()


@pytest.mark.parametrize("make", [make_fifo, make_socket, make_folder])
def test_a_lock_that_is_no_file_is_refused_at_once(tmp_path, make, monkeypatch):
    """Nothing waits for the other end of a pipe."""
    monkeypatch.chdir(tmp_path)  # names of sockets are short
    make(Path(".lock"))
    with pytest.raises(RunError, match="delete it"), locked(Run(tmp_path)):
        pass


@pytest.mark.parametrize("place", ["checkpoints", "some/where/deep"])
@pytest.mark.parametrize("command", WRITERS)
def test_no_command_follows_a_link(copied, command, place):
    """The link is named, and nothing changes: neither in the run directory nor where the link points."""
    name = "sweep-edm-0" if command.startswith("sweep") else "small"
    link = copied / "runs" / name / place
    elsewhere = copied / "elsewhere"
    link.parent.mkdir(parents=True, exist_ok=True)
    if link.exists():
        link.rename(elsewhere)
    else:
        elsewhere.mkdir()
        (elsewhere / "precious").write_text("all of it")
    link.symlink_to(elsewhere)
    before = written(copied / "runs"), written(elsewhere)
    done = call(*line(command, copied))
    assert done.returncode == 1, done.stdout
    if command.startswith("check"):  # which names it in its list
        said, wanted = done.stdout, f"{place}: is a link, which no run directory may hold"
    else:
        said, wanted = done.stderr, f"{link} is a link, and a run directory may hold none"
    assert wanted in said
    assert len(said.strip().splitlines()) == 1
    assert (written(copied / "runs"), written(elsewhere)) == before
    assert link.is_symlink()


def test_the_run_directory_itself_may_be_reached_through_a_link(copied):
    """As where runs lie on another disk."""
    (copied / "runs").rename(copied / "disk")
    (copied / "runs").symlink_to(copied / "disk")
    snrkit(copied, "sample", "-q")
    snrkit(copied, "report")
    assert (copied / "disk/small/samples/euler/manifest.json").is_file()
    assert (copied / "disk/small/report.html").is_file()


LEFT = {  # by command: what killed ones leave, below the folder of the test
    "train": ["runs/small/checkpoints/.000000128", "runs/small/.config.yaml", "runs/small/snapshots/.000000128"],
    "sample": ["runs/small/samples/euler/000000/.000003.png", "runs/small/samples/euler/.manifest.json"],
    "measure-shift": ["runs/small/shift/.euler.json"],
    "fit-estimator": ["runs/small/estimator/.network.safetensors"],
    "eval-fid": ["runs/small/metrics/.euler.json", "cache/.pixels-1.safetensors"],
    "tune --by predicted": ["runs/small/tune/.euler.json"],
    "compare": ["runs/small/compare/.euler.json", "runs/small/.compare.html", "cache/.pixels-1.safetensors"],
    "average RUN --decay 0.9": ["runs/small/averages/snapshots-0.9/.000000128"],
    "export RUN": ["runs/small/export/.diffusers"],
    "analyze": ["runs/small/analysis/.index.md"],
    "analyze --spectrum": ["runs/small/analysis/spectrum/.spectrum.png"],
    "report": ["runs/small/.report.html"],
    "sweep FILE": ["runs/.sweep.json", "runs/sweep-edm-0/sweep/.edm-1.json"],
}


@pytest.mark.parametrize("command", LEFT)
def test_the_next_command_clears_what_a_killed_one_left(copied, monkeypatch, command):
    """Unfinished files and folders of a process that is no more; those of others who may be at work stay."""
    monkeypatch.setenv("SNRKIT_CACHE", str(copied / "cache"))
    left = [copied / f"{path}.{platform.node()}.{GONE}.tmp" for path in LEFT[command]]
    for path in left:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if path.name.startswith((".0000001", ".diff")):
            path.mkdir()
            (path / "network.safetensors").write_bytes(b"half")
        else:
            path.write_bytes(b"half")
    with quick(KNOWN):
        done = call(*line(command, copied))
    assert done.returncode == 0, done.stderr
    assert [path for path in left if path.exists()] == []


def test_what_an_export_elsewhere_left_is_cleared_and_no_more(copied):
    """The folder that --out names lies among others' files."""
    mine, other = (copied / f".{name}.{platform.node()}.{GONE}.tmp" for name in ("made", "other"))
    for path in (mine, other):
        path.mkdir()
    done = call(*line("export RUN", copied), "--out", str(copied / "made"))
    assert done.returncode == 0, done.stderr
    assert (mine.exists(), other.exists()) == (False, True)


def test_what_another_process_writes_is_left_alone(tmp_path):
    """By a command that works without the lock, while that process lives."""
    alive, dead = (tmp_path / f".index.md.{platform.node()}.{process}.tmp" for process in (os.getpid(), GONE))
    for path in (alive, dead):
        path.write_bytes(b"half")
    with beside(Run(tmp_path), tmp_path):
        assert (alive.exists(), dead.exists()) == (True, False)
    remove_abandoned(tmp_path / "absent")


def test_links_are_looked_for_while_another_deletes(tmp_path, monkeypatch):
    """As a training deletes old checkpoints beside a report; a run that is not there yet has none."""
    run, scan = Run(tmp_path / "run"), os.scandir
    check_links(run)
    for name in ("old", "new"):
        (run.path / name).mkdir(parents=True)

    def deleting(path):
        with scan(path) as found:
            entries = list(found)
        if (run.path / "old").exists():
            (run.path / "old").rmdir()
        return contextlib.nullcontext(entries)

    with monkeypatch.context() as patch:
        patch.setattr(os, "scandir", deleting)
        check_links(run)
    (run.path / "new" / "link").symlink_to(tmp_path)
    with pytest.raises(RunError, match="is a link"):
        check_links(run)


def test_a_report_is_written_while_another_command_works(copied):
    """Reports and analyses of a training that goes on."""
    with locked(Run(copied / "runs" / "small")):
        snrkit(copied, "report")
        assert "another process is working" in snrkit(copied, "sample", "-q", check=False).stderr


def test_train_falls_back_from_a_damaged_checkpoint(copied):
    """Each file of the newest in turn: refused with the remedy, which ends as the undisturbed run, bit for bit."""
    run = copied / "runs" / "small"
    wanted, log = weights(run), log_without_times(run / "train.jsonl")
    newest = run / "checkpoints" / "000000128"
    files = sorted(path.name for path in newest.iterdir())
    assert "state.json" in files
    assert len(files) == 5
    for name in files:
        content = (newest / name).read_bytes()
        (newest / name).write_bytes(content[: len(content) // 2] + b"?" + content[len(content) // 2 + 1 :])
        refused = snrkit(copied, "train", "-q", check=False)
        assert refused.returncode == 1
        assert f"checkpoint {newest} is damaged" in refused.stderr
        assert "snrkit train --fall-back" in refused.stderr
        snrkit(copied, "train", "-q", "--fall-back")
        assert weights(run) == wanted
        assert log_without_times(run / "train.jsonl") == log


def test_nothing_is_begun_anew_where_all_checkpoints_are_damaged(copied):
    """With --fall-back too; nothing is moved."""
    run = copied / "runs" / "small"
    for path in (run / "checkpoints").iterdir():
        (path / "state.json").unlink()
    before = written(run)
    assert "snrkit train --fall-back" in snrkit(copied, "train", "-q", check=False).stderr
    refused = snrkit(copied, "train", "-q", "--fall-back", check=False)
    assert refused.returncode == 1
    assert "no checkpoint in" in refused.stderr
    assert written(run) == before
