"""Whatever numbers depend on is part of the key that they are kept under: where it differs, they are refused."""

import json
import shutil

import pytest
import yaml

from snrkit.base.numerics import NUMERICS
from snrkit.base.sealed import read_json, write_json
from tests.small import SMALL, edit, snrkit, write_config

EULER = SMALL["samplers"]["euler"]
PLAIN = {
    "train": {**SMALL["train"], "images": 320, "decay": "constant", "augment": None, "averages": [{"half_life": 500}]},
    "network": {**SMALL["network"], "augment": False, "dropout": 0.0},
    "sample": {"seeds": "0-15", "batch": 8},
    "samplers": {"euler": EULER},
}  # fmt: skip


@pytest.fixture(scope="module")
def scored(tmp_path_factory):
    """A folder with a run that was trained, sampled, scored in both ways and measured."""
    folder = tmp_path_factory.mktemp("scored")
    write_config(folder, **PLAIN)
    for arguments in (["train"], ["sample"], ["eval-fid"], ["eval-fid", "--checkpoints", "all"], ["measure-shift"]):
        snrkit(folder, *arguments, "-q")
    return folder


@pytest.fixture
def copied(scored, tmp_path):
    """A copy of it to spoil."""
    return shutil.copytree(scored, tmp_path / "copy")


def refused(folder, *arguments):
    """The sentence that a command ends in."""
    done = snrkit(folder, *arguments, check=False)
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    return done.stderr


@pytest.mark.parametrize("key", [
    "numerics", "sampler", "training", "data", "weights", "weights_checksum", "labels", "precision", "tf32",
    "named",
])  # fmt: skip
def test_images_of_another_manifest_are_not_scored(copied, key):
    """Whatever the manifest says, the experiment at hand must say too."""
    edit(copied / "runs/small/samples/euler/manifest.json", **{key: "other"})
    assert f"holds images of another sampler or other weights than euler is now ({key} differ)" in refused(
        copied, "eval-fid", "-q"
    )


@pytest.mark.parametrize(
    ("setting", "key"),
    [("sample.labels=1", "labels"), ("compute.precision=bf16", "precision"), ("sample.average=network", "weights"),
     ("compute.tf32=true", "tf32")],
)  # fmt: skip
def test_settings_that_the_images_were_not_made_with_are_refused(copied, setting, key):
    """Scores of an experiment are of its own images."""
    assert key in refused(copied, "eval-fid", "-q", "--set", setting)


def test_images_of_a_checkpoint_are_scored_when_training_has_gone_on(copied):
    """Also when it is gone; the record says which it was. Those of another are refused where one is asked for."""
    run, more = copied / "runs/small", ["--set", "train.images=640"]
    before = json.loads((run / "metrics/euler.json").read_text())
    snrkit(copied, "train", "-q", *more)
    refusal = refused(copied, "eval-fid", "-q", *more, "--set", "sample.checkpoint=640")
    assert "checkpoint_images" in refusal
    shutil.rmtree(run / "checkpoints/000000320")
    snrkit(copied, "eval-fid", "-q", *more)
    after = json.loads((run / "metrics/euler.json").read_text())
    assert after == before
    assert "(weights" in refused(copied, "eval-fid", "-q", *more, "--set", "sample.average=network")
    assert (after["checkpoint_images"], after["weights"], after["numerics"]) == (320, "ema-500", NUMERICS)


def test_scores_and_shifts_of_other_numerics_are_left_out_of_the_report(copied):
    """As are curves; the page says so. A file from before scores held the number is one of them."""
    run = copied / "runs/small"
    snrkit(copied, "report")
    assert "Over training" in (run / "report.md").read_text()
    curve = json.loads((run / "metrics/euler@checkpoints.json").read_text())
    points = [{**point, "numerics": NUMERICS - 1} for point in curve["points"]]
    edit(run / "metrics/euler@checkpoints.json", points=points)
    edit(run / "shift/euler.json", numerics=NUMERICS - 1)
    score = read_json(run / "metrics/euler.json")
    del score["numerics"]
    write_json(run / "metrics/euler.json", score)
    snrkit(copied, "report")
    page = (run / "report.md").read_text()
    assert "another version of the numerics made them: curve of euler, scores of euler, shift of euler; run" in page
    row = next(line for line in page.splitlines() if line.startswith("| euler"))
    assert [cell.strip() for cell in row.split("|")][5:] == ["?", ""]  # no number of any column
    assert "Over training" not in page


def test_a_guide_that_was_trained_anew_is_noticed(scored, tmp_path):
    """With another seed, to the same number of images, under the same name: other weights."""
    shutil.copytree(scored, tmp_path / "copy")
    folder, guide = tmp_path / "copy", tmp_path / "copy/runs/guide"
    correction = {"kind": "autoguidance", "weight": 0.5, "run": str(guide)}
    guided = {"guided": {**EULER, "corrections": [correction]}}
    (folder / "guide.yaml").write_text(yaml.safe_dump({**SMALL, **PLAIN, "name": "guide"}))
    snrkit(folder, "train", "-q", config="guide.yaml")
    write_config(folder, **{**PLAIN, "samplers": guided})
    snrkit(folder, "sample", "-q")
    snrkit(folder, "eval-fid", "-q")
    shutil.rmtree(guide)
    snrkit(folder, "train", "-q", "--set", "seed=1", config="guide.yaml")
    for command in ("sample", "eval-fid"):
        assert "(named differ)" in refused(folder, command, "-q")
