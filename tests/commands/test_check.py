"""`snrkit check` finds what does not belong, names a remedy that works, and blames nothing that is sound."""

import json
import os
import shutil

import pytest

from snrkit.base.sealed import write_json
from snrkit.checkpoints.ours import list_checkpoints
from snrkit.commands import check
from snrkit.experiment.lock import locked
from snrkit.experiment.run import Run
from snrkit.experiment.sample_folder import SampleFolder
from tests.small import SMALL, call, options, snrkit, write_config, written


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A small run with images, scores, a measurement and a comparison."""
    folder = tmp_path_factory.mktemp("finished")
    train = {**SMALL["train"], "images": 640, "save_every": 320}
    euler = SMALL["samplers"]["euler"]
    compare = {"rounds": 1, "timed_images": 2, "solvers": []}
    write_config(
        folder, train=train, samplers={"euler": euler}, sample={"seeds": "0-15", "batch": 8}, compare=compare,
        metrics={"features": "pixels", "pixel_components": 4, "ranges": 1},
    )  # fmt: skip
    for command in ("train", "sample", "measure-shift", "eval-fid", "compare"):
        snrkit(folder, command, "-q")
    return folder


def lines(folder, *more):
    """What `check` prints, and its exit code."""
    done = call("check", str(folder / "runs/small"), *more)
    assert done.stderr == ""
    return done.stdout.splitlines(), done.returncode


def test_a_sound_run_is_called_sound_and_says_what_was_not_looked_at(copied):
    """Files without a checksum are counted apart; so is what was put aside."""
    before = written(copied)
    (said,), code = lines(copied)
    run = copied / "runs/small"
    files = [path for path in run.rglob("*") if path.is_file() and path.name != ".lock"]
    record = json.loads(call("check", str(run), "--json").stdout)
    assert code == 0
    assert record["verified"] + record["others"] == len(files)
    assert f"{record['verified']} files are as they were written; {record['others']} more" in said
    assert written(copied) == before


def test_every_file_that_is_called_verified_is(copied):
    """One bit of any of them flipped is named: by its own name, or by that of its checkpoint."""
    run = copied / "runs/small"
    verified = sorted(set(check._sealed(Run(run))) & set(run.rglob("*")))
    assert len(verified) == json.loads(call("check", str(run), "--json").stdout)["verified"]
    assert len(verified) > 40
    for path in verified:
        whole = path.read_bytes()
        path.write_bytes(whole[: len(whole) // 2] + bytes([whole[len(whole) // 2] ^ 1]) + whole[len(whole) // 2 + 1 :])
        found, code = lines(copied)
        assert code == 1, path
        names = {path.relative_to(run).as_posix(), path.parent.relative_to(run).as_posix()}
        assert any(line.partition(":")[0] in names for line in found), (path, found)
        path.write_bytes(whole)


@pytest.mark.parametrize("place", ["metrics/mine.json", "analysis/mine/table.json", "metrics/euler.json"])
@pytest.mark.parametrize("content", [{"mine": 1}, None])
def test_what_is_not_ours_or_of_another_version_stays(copied, place, content):
    """It is named, and not moved: JSON without a checksum, and a record with other keys and a right one."""
    path = copied / "runs/small" / place
    path.parent.mkdir(parents=True, exist_ok=True)
    if content is None:
        write_json(path, {"later": 1})
    else:
        path.write_text(json.dumps(content))
    before = written(copied)
    found, code = lines(copied, "--repair")
    sound = content is None and place.startswith("analysis")  # of which no keys are asked
    assert code == (0 if sound else 1)
    assert sound or f"{place}: " in found[0]
    assert sound or "move it away, or run snrkit" in found[0].replace("; or", ", or")
    assert {path: each for path, each in written(copied).items() if path.name != ".lock"} == {
        path: each for path, each in before.items() if path.name != ".lock"
    }


def test_a_checkpoint_of_another_version_is_not_damaged(copied):
    """Neither repair nor --fall-back moves it."""
    newest = list_checkpoints(copied / "runs/small/checkpoints")[-1]
    state = json.loads((newest / "state.json").read_text())
    state.pop("checksum")
    write_json(newest / "state.json", {**state, "later": 1})
    (found,), code = lines(copied, "--repair")
    assert code == 1
    assert "another version" in found
    done = call("train", "-q", "--fall-back", *options(copied, "small.yaml"))
    assert done.returncode == 1
    assert "another version" in done.stderr
    assert list_checkpoints(copied / "runs/small/checkpoints")[-1] == newest


def test_repairing_never_replaces_what_was_put_aside(copied):
    """The second of a name lies beside the first."""
    folder = SampleFolder(copied / "runs/small/samples/euler")
    for content in (b"first", b"second"):
        folder.image(3).write_bytes(content)
        assert lines(copied, "--repair")[1] == 0
        snrkit(copied, "sample", "-q")
    kept = sorted((copied / "runs/small/damaged").rglob("000003.png*"))
    assert [path.read_bytes() for path in kept] == [b"first", b"second"]


def test_a_run_that_is_worked_on_is_not_judged(copied):
    """Which would find half of what is being written."""
    with locked(Run(copied / "runs/small")):
        done = call("check", str(copied / "runs/small"))
    assert done.returncode == 1
    assert "another process is working in" in done.stderr
    assert lines(copied)[1] == 0


@pytest.mark.parametrize("alone", [False, True])
def test_a_checkpoint_of_another_training_is_refused(copied, alone):
    """By check, by sample and by training, although config.yaml beside it is right; with others beside it or alone."""
    run, other = copied / "runs/small", copied / "other"
    assert (
        call("train", "-q", "--config", str(copied / "small.yaml"), "--runs", str(other), "--set", "seed=1").returncode
        == 0
    )
    newest = list_checkpoints(run / "checkpoints")[-1]
    for path in list_checkpoints(run / "checkpoints") if alone else [newest]:
        shutil.rmtree(path)
    shutil.copytree(other / "small/checkpoints" / newest.name, newest)
    shutil.rmtree(run / "samples")
    found, code = lines(copied)
    assert code == 1
    assert any(newest.name in line and "is of another training" in line for line in found)
    for command in (["sample", "-q"], ["train", "-q", "--set", "train.images=960"]):
        done = call(*command, *options(copied, "small.yaml"))
        assert done.returncode == 1
        assert "is of another training" in done.stderr


@pytest.mark.parametrize("kind", ["checkpoints", "snapshots"])
def test_older_weights_of_another_training_are_refused(copied, kind):
    """By check, and by what would sample or average them."""
    run, other = copied / "runs/small", copied / "other"
    more = ("--set", "train.snapshot_every=320")
    for runs, seed in ((copied / "runs", 0), (other, 1)):
        shutil.rmtree(runs / "small", ignore_errors=True)
        done = call("train", "-q", "--config", str(copied / "small.yaml"), "--runs", str(runs), "--set", f"seed={seed}",
                    *more)  # fmt: skip
        assert done.returncode == 0
    shutil.rmtree(run / kind / "000000320")
    shutil.copytree(other / "small" / kind / "000000320", run / kind / "000000320")
    (found,), code = lines(copied)
    assert code == 1
    assert f"{kind}/000000320: is of another training (seed is 1 there and 0 here)" in found
    if kind == "checkpoints":
        done = call("sample", "-q", *options(copied, "small.yaml"), "--set", "sample.checkpoint=320")
    else:
        done = call("average", str(run), "--decay", "0.9")
    assert done.returncode == 1
    assert "is of another training (seed is 1 there and 0 here)" in done.stderr


def test_a_training_of_a_version_with_fewer_keys_goes_on(copied):
    """A key that a checkpoint does not know has its default there."""
    for path in list_checkpoints(copied / "runs/small/checkpoints"):
        state = json.loads((path / "state.json").read_text())
        state.pop("checksum")
        assert state["numbers"]["of"]["experiment"]["train"].pop("balance", "absent") is None
        write_json(path / "state.json", state)
    assert lines(copied)[1] == 0
    snrkit(copied, "train", "-q", "--set", "train.images=960")
    other = ("--set", "train.balance={}")
    for path in [copied / "runs/small/config.yaml", copied / "runs/small/environment.json"]:
        path.unlink()
    done = call("train", "-q", *options(copied, "small.yaml"), *other)
    assert done.returncode == 1
    assert "train.balance is None there" in done.stderr


@pytest.mark.parametrize("name", ["network.safetensors", "state.json"])
def test_a_folder_in_the_place_of_a_file_is_damage(copied, name):
    """Named as such, and fallen back from."""
    newest = list_checkpoints(copied / "runs/small/checkpoints")[-1]
    (newest / name).unlink()
    (newest / name).mkdir()
    (found,), code = lines(copied)
    assert code == 1
    assert "--fall-back" in found
    snrkit(copied, "train", "-q", "--fall-back")
    assert lines(copied)[1] == 0


@pytest.mark.parametrize(
    ("pattern", "command"),
    [("metrics/euler.json", "eval-fid"), ("shift/euler.json", "measure-shift"), ("compare/euler.json", "compare"),
     ("samples/euler/manifest.json", "sample"), ("samples/euler/000000/000003.png", "sample"),
     ("compare/samples/euler/000000/000003.png", "compare"), ("compare/samples/euler/manifest.json", "compare")],
)  # fmt: skip
def test_remedies_work_word_for_word(copied, pattern, command):
    """Deleted, or put aside by --repair where it is, and made again by the command that is named: sound again."""
    path = copied / "runs/small" / pattern
    whole = path.read_bytes()
    for mend in (path.unlink, lambda: lines(copied, "--repair")):
        path.write_bytes(whole[: len(whole) // 2])
        (found,), code = lines(copied)
        assert code == 1
        assert "delete it" in found
        assert f"run snrkit {command} again" in found
        (path.unlink if path.name == "manifest.json" else mend)()  # which is not put aside
        snrkit(copied, command, "-q")
        assert lines(copied)[1] == 0
        assert path.exists()


def test_images_that_nothing_vouches_for_are_named(copied):
    """Without their manifest, and one beside it; many in one line."""
    run = copied / "runs/small"
    (run / "samples/euler/manifest.json").unlink()
    (found,), code = lines(copied)
    assert code == 1
    assert "samples/euler/000000/000000.png and 15 more beside it: is not listed in manifest.json" in found
    assert "run snrkit sample again" in found
    before = sorted((run / "samples").rglob("*.png"))
    assert lines(copied, "--repair")[1] == 1
    assert sorted((run / "samples").rglob("*.png")) == before
    snrkit(copied, "sample", "-q")
    assert lines(copied)[1] == 0


def test_a_missing_configuration_is_no_advice_to_delete_the_run(copied):
    """It is called missing, and `sample` writes it."""
    (copied / "runs/small/config.yaml").unlink()
    (found,), code = lines(copied)
    assert code == 1
    assert found.startswith("config.yaml: is missing; run snrkit train or sample")
    assert "delete" not in found
    snrkit(copied, "sample", "-q")
    assert lines(copied)[1] == 0


def test_a_folder_of_runs_is_told_apart(copied):
    """One of them is named."""
    done = call("check", str(copied / "runs"))
    assert done.returncode == 1
    assert "name one of the runs in it" in done.stderr
    assert str(copied / "runs/small") in done.stderr


def test_two_sets_of_images_are_verified_by_their_manifest(copied):
    """An image that was exchanged is refused there too; a stranger's manifest.json is not ours."""
    folder = SampleFolder(copied / "runs/small/samples/euler")
    pair = ("eval-fid", str(folder.path), str(folder.path), "--set", "features=pixels")
    assert call(*pair).returncode == 0
    shutil.copy(folder.image(2), folder.image(3))
    done = call(*pair)
    assert done.returncode == 1
    assert "000003.png is not the image that snrkit sample made" in done.stderr
    (folder.path / "manifest.json").write_text('{"name": "mine"}')
    assert call(*pair).returncode == 0


def test_images_beside_those_that_are_listed_are_not_scored(copied):
    """And a damaged manifest does not switch its verification off."""
    folder = SampleFolder(copied / "runs/small/samples/euler")
    pair = ("eval-fid", str(folder.path), str(folder.path), "--set", "features=pixels")
    shutil.copy(folder.image(2), folder.image(777))
    assert "000777.png is not listed in" in call(*pair).stderr
    folder.image(777).unlink()
    manifest = folder.path / "manifest.json"
    manifest.write_text(manifest.read_text().replace("0", "1", 1))
    assert "its checksum does not fit" in call(*pair).stderr


def close(folder, monkeypatch):
    """Have a folder not be listed, as one of another user's."""
    plain = os.scandir

    def listing(path):
        if str(path) == str(folder):
            raise PermissionError(13, "Permission denied", str(path))
        return plain(path)

    monkeypatch.setattr(os, "scandir", listing)


def test_a_training_does_not_begin_anew_where_its_checkpoints_cannot_be_listed(copied, monkeypatch):
    """Which would empty the log."""
    before = written(copied / "runs")
    close(copied / "runs/small/checkpoints", monkeypatch)
    done = call("train", "-q", *options(copied, "small.yaml"), "--set", "train.images=960")
    monkeypatch.undo()
    assert done.returncode == 1
    assert "cannot be read (Permission denied)" in done.stderr
    assert written(copied / "runs") == before


def test_a_folder_that_may_not_be_listed_is_a_sentence(copied, monkeypatch):
    """Not an advice to free space."""
    closed = copied / "runs/small/samples/euler"
    close(closed, monkeypatch)
    done = call("check", str(copied / "runs/small"))
    assert done.returncode == 1
    assert f"{closed} cannot be read (Permission denied); see to its disk and permissions" in done.stderr
