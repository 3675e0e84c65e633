"""`snrkit check` finds what does not belong, names a remedy that works, and blames nothing that is sound."""

import json
import os
import re
import shutil

import pytest

from snrkit.base.sealed import write_json
from snrkit.checkpoints.ours import list_checkpoints
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


@pytest.fixture
def copied(finished, tmp_path):
    """A copy of it to spoil."""
    return shutil.copytree(finished, tmp_path / "copy")


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
    unsealed = [path.relative_to(run).as_posix() for path in files if path.suffix in (".png", ".md", ".html", ".csv")]
    unsealed = [name for name in unsealed if not re.search(r"samples/euler/\d+/", name)]
    assert record["others"] == len([*unsealed, *run.rglob("dataset.json")])
    assert f"{record['verified']} files are as they were written; {record['others']} more" in said
    assert written(copied) == before


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


@pytest.mark.parametrize("name", ["power.safetensors", "network.safetensors", "state.json"])
def test_a_folder_in_the_place_of_a_file_is_damage(copied, name):
    """Named as such, and fallen back from."""
    newest = list_checkpoints(copied / "runs/small/checkpoints")[-1]
    name = name if (newest / name).exists() else "ema-500.safetensors"
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
     ("compare/samples/euler/000000/000003.png", "compare"), ("samples/euler.png", "sample")],
)  # fmt: skip
def test_remedies_work_word_for_word(copied, pattern, command):
    """Deleted, or put aside by --repair, and made again by the command that is named, a run is sound again."""
    path = copied / "runs/small" / pattern
    whole = path.read_bytes()
    for mend in (path.unlink, lambda: lines(copied, "--repair")):
        path.write_bytes(whole[: len(whole) // 2])
        (found,), code = lines(copied)
        assert code == 1
        assert "delete it" in found
        assert f"run snrkit {command} again" in found
        mend()
        if path.exists():  # a manifest, which is not put aside
            path.unlink()
        snrkit(copied, command, "-q", *(["--overwrite"] if pattern == "samples/euler.png" else []))
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
    for write in (lambda path: path.write_text("{}"), lambda path: write_json(path, {"name": "mine"})):
        write(folder.path / "manifest.json")
        assert call(*pair).returncode == 0


def test_a_folder_that_may_not_be_listed_is_a_sentence(copied, monkeypatch):
    """Not an advice to free space."""
    plain, closed = os.scandir, copied / "runs/small/samples/euler"

    def listing(path):
        if str(path) == str(closed):
            raise PermissionError(13, "Permission denied", str(path))
        return plain(path)

    monkeypatch.setattr(os, "scandir", listing)
    done = call("check", str(copied / "runs/small"))
    assert done.returncode == 1
    assert f"{closed} cannot be read (Permission denied); see to its disk and permissions" in done.stderr
