"""snrkit init, and what travels with snrkit: files that are valid and fit what they were made for; the demo's model."""

import hashlib
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from snrkit.base.errors import ConfigError
from snrkit.base.starters import STARTERS, is_demo
from snrkit.checkpoints.exported import SnrkitModel
from snrkit.commands.init import CPU, GPU, _as_made, _data, _network, _packing, look
from snrkit.experiment.experiment import load_experiment
from tests.small import call

MODEL = STARTERS / "digits.safetensors"
SUM = "2fee9898c78f4da6d54ac3af1ca47b041cee17f488e4487896a8a79ecd34ad55"


def photos(folder, sizes, mode="RGB", classes=("cats", "dogs"), count=24):
    """Images of these sizes in turn, in one folder a class."""
    rng = np.random.default_rng(0)
    for label in classes:
        (folder / label).mkdir(parents=True)
        for i in range(count):
            height, width = sizes[i % len(sizes)]
            pixels = rng.integers(0, 255, (height, width, 3), dtype=np.uint8)
            Image.fromarray(pixels).convert(mode).save(folder / label / f"{i}.png")


@pytest.mark.parametrize("machine", [CPU, GPU], ids=["cpu", "gpu"])
def test_a_network_can_be_made_for_every_side(machine):
    """Of images that are taken as they are; on a GPU it attends where states are small."""
    for side in range(4, machine.largest + 1, 4):
        network = _network(side, 10, machine)
        with torch.device("meta"):
            network.make((3, side, side))
        assert bool(network.attention) == (machine is GPU)


def made(*arguments):
    done = call("init", *map(str, arguments))
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_training_that_is_a_trial_is_said_to_be_one(tmp_path, monkeypatch):
    """By init itself, which wrote its length; one of ten hours is none."""
    photos(tmp_path / "photos", [(16, 16)])
    monkeypatch.setattr("snrkit.commands.init.training_pace", lambda *_: 10.0)
    for minutes, trial in ((5, True), (600, False)):
        done = call(
            "init", str(tmp_path / f"{minutes}.yaml"), "--data", str(tmp_path / "photos"), "--minutes", str(minutes)
        )
        assert done.returncode == 0, done.stderr
        assert ("steps of training are a trial of the commands" in done.stderr) is trial


def test_a_run_is_no_folder_of_images(tmp_path):
    """Though samples and plots lie in it."""
    photos(tmp_path / "run", [(16, 16)])
    (tmp_path / "run/config.yaml").write_text("name: run\n")
    done = call("init", str(tmp_path / "new.yaml"), "--data", str(tmp_path / "run"))
    assert done.returncode == 1
    assert "is a run of snrkit's own; give the images that a model is to make" in done.stderr
    assert not (tmp_path / "new.yaml").exists()


def test_the_model_that_travels_is_the_one_that_the_starter_trains():
    """Its parts are those of digits.yaml, its data those of both; it is below 2 MB, and these bytes."""
    trained, demo = load_experiment(STARTERS / "digits.yaml"), load_experiment(STARTERS / "demo.yaml")
    about = SnrkitModel(path=MODEL).about()
    for part in ("process", "target", "precondition", "network"):
        assert getattr(about, part) == getattr(trained, part)
    assert (demo.data.holdout, demo.seed) == (trained.data.holdout, trained.seed)
    assert load_experiment("demo") == demo
    assert (demo.samplers, demo.sample, demo.shift) == (trained.samplers, trained.sample, trained.shift)
    assert about.images >= trained.train.images
    content = MODEL.read_bytes()
    assert len(content) < 2e6
    assert hashlib.sha256(content).hexdigest() == SUM


def test_demo_is_an_experiment_unless_something_has_its_name(tmp_path, monkeypatch):
    """As the first word and by --config; it samples with its model."""
    monkeypatch.chdir(tmp_path)
    settings = ["--set", "sample={seeds: 0-7, batch: 8}", "--sampler", "euler-13", "-q"]
    for words in (["demo"], ["--config", "demo"]):
        done = call("sample", *words, *settings)
        assert done.returncode == 0, done.stderr
        assert len(list((tmp_path / "runs/demo/samples/euler-13").rglob("*.png"))) == 8
    assert "next: snrkit eval-fid demo --set" in done.stdout
    (tmp_path / "demo").mkdir()
    assert not is_demo(Path("demo"))
    assert "demo is neither a YAML file nor a run directory" in call("sample", "demo").stderr


def test_nothing_given_gives_the_digits(tmp_path, monkeypatch):
    """The starter, named after its file, which is not written over."""
    monkeypatch.chdir(tmp_path)
    assert "next: snrkit run experiment.yaml" in made()
    found = load_experiment("experiment.yaml")
    assert found == load_experiment(STARTERS / "digits.yaml").model_copy(update={"name": "experiment"})
    assert call("init").returncode == 0  # it is the very file
    Path("experiment.yaml").write_text("# mine\n" + Path("experiment.yaml").read_text())
    assert "is there already" in call("init").stderr
    assert Path("experiment.yaml").read_text().startswith("# mine")
    assert "end it in .yaml" in call("init", "x.txt").stderr


def test_images_that_fit_are_trained_on_as_they_are(tmp_path, monkeypatch):
    """Labels by folder, the size of the set, a path from anywhere; a mix of grey and RGB is RGB."""
    monkeypatch.chdir(tmp_path)
    photos(tmp_path / "my $images", [(16, 16)])
    Image.new("L", (16, 16)).save(tmp_path / "my $images/cats/grey.png")
    said = made("x.yaml", "--data", "my $images")
    assert "first:" not in said
    found = load_experiment("x.yaml")
    assert found.data.path == tmp_path / "my $images"
    assert (found.data.labels, found.data.channels, found.network.classes) == ("folders", 3, 2)
    assert found.data.open().count == 49
    assert found.data.holdout * 49 >= 20
    assert found.train.images * 1.0 >= 20_000
    assert found.sample.seeds == "0-499"
    assert "making\n# the images of the samplers about" in (tmp_path / "x.yaml").read_text()
    monkeypatch.chdir(os.sep)
    done = call("train", str(tmp_path / "x.yaml"), "--dry-run")
    assert done.returncode == 0, done.stderr
    assert "49 images (3, 16, 16)" in done.stdout


def test_photographs_are_packed_first(tmp_path, monkeypatch):
    """By the command that is printed, to the zip that the file names."""
    monkeypatch.chdir(tmp_path)
    photos(tmp_path / "photos", [(40, 50), (33, 70)], classes=("all",), count=40)
    lines = made("x.yaml", "--data", "photos", "--device", "cpu").splitlines()
    assert lines[1] == "first: snrkit data pack photos -o photos-32.zip --size 32"
    assert call(*lines[1].removeprefix("first: snrkit ").split()).returncode == 0
    found = load_experiment("x.yaml")
    assert found.data.open().shape == (3, 32, 32)
    assert found.network.classes == 0


def test_a_model_is_measured_as_it_is(tmp_path, monkeypatch):
    """Of its kind, its size and its own levels; its images where they are given."""
    monkeypatch.chdir(tmp_path)
    assert "next: snrkit certify x.yaml" in made("x.yaml", "--from", MODEL)
    found = load_experiment("x.yaml")
    assert found.model.source == SnrkitModel(path=MODEL)
    assert {sampler.grid.kind for sampler in found.samplers.values()} == {"karras"}
    assert "CHANGE THIS" in (tmp_path / "x.yaml").read_text()
    photos(tmp_path / "big", [(20, 20)], "L")
    assert "first: snrkit data pack big -o big-8.zip --size 8" in made("y.yaml", "--from", MODEL, "--data", "big")
    photos(tmp_path / "small", [(4, 4)], "L")
    refused = call("init", "z.yaml", "--from", str(MODEL), "--data", "small").stderr
    assert "smaller than the 8x8 that the model makes" in refused


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--data", "nowhere"], "--data: nowhere does not exist"),
        (["--data", "text"], "--data: text is no folder, zip or .npz"),
        (["--data", "few"], "--data: few has 3 images; give at least 40"),
        (["--from", "nowhere"], "--from: nowhere does not exist"),
        (["--from", "text"], "--from: text is no model of a kind that is known"),
        (["--from", "runs/small"], "--from: runs/small is a run of snrkit's own"),
    ],
)
def test_what_cannot_be_begun_with_is_refused(tmp_path, monkeypatch, words, said):
    """In one sentence; nothing is written."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text").write_text("no model")
    (tmp_path / "few").mkdir()
    for i in range(3):
        Image.new("L", (8, 8), i).save(tmp_path / f"few/{i}.png")
    (tmp_path / "runs/small").mkdir(parents=True)
    (tmp_path / "runs/small/config.yaml").write_text("name: small")
    done = call("init", *words)
    assert done.returncode == 1
    assert done.stderr.startswith(f"snrkit: {said}")
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "experiment.yaml").exists()


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory."), MemoryError()], ids=repr)
def test_a_lack_of_memory_ends_in_one_sentence(tmp_path, monkeypatch, error):
    """Of the device or of the host, in whatever command; other errors of torch's keep their traceback."""

    def refused(path):
        raise error

    monkeypatch.setattr("snrkit.commands.init.look", refused)
    done = call("init", str(tmp_path / "x.yaml"), "--data", str(tmp_path))
    assert done.returncode == 1
    assert done.stderr.startswith("snrkit: not enough memory; give smaller batches")
    assert len(done.stderr.splitlines()) == 1


def test_images_become_what_the_model_makes(tmp_path):
    """Grey ones for a model of colour are read as such; of states that are latents, the images are meant."""
    photos(tmp_path / "grey", [(16, 16)], "L")
    images = look(tmp_path / "grey")
    assert (images.shape, images.mixed) == ((1, 16, 16), False)
    found, side = _as_made(images, (3, 8, 8))
    assert "channels: 3" in _data(found, 16)
    assert "--channels 3" in _packing(found, side)
    with pytest.raises(ConfigError, match="images of 16x16 are smaller than the 32x32 that the model makes"):
        _as_made(images, (3, 32, 32))
