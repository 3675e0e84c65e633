"""Own models in other representations than pixels, from the command that encodes to scores and shifts."""

import json
import math
import os
import re
import shutil
import signal

import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file, save_file

from snrkit.base import signals
from snrkit.base.distributed import World
from snrkit.checkpoints.codec import load_codec
from snrkit.checkpoints.foreign import Autoencoder
from snrkit.commands import data_encode
from snrkit.data.dataset import to_bytes
from snrkit.data.digits import Digits
from snrkit.data.latents import read_latents
from snrkit.experiment.experiment import load_experiment
from snrkit.experiment.opening import open_experiment, open_model
from snrkit.experiment.run import Run
from snrkit.experiment.trajectories import trajectories
from tests.small import SMALL, load_images, snrkit, written

CPU = torch.device("cpu")
WORLD = World(0, 1, CPU)
COMMANDS = ("train", "sample", "eval-fid", "measure-shift")
NETWORK = {"kind": "mlp", "dim": 8, "depth": 1, "classes": 10}


@pytest.fixture(scope="module")
def diffusers():
    """The package, where it is installed."""
    return pytest.importorskip("diffusers", reason="needs the extra diffusers")


@pytest.fixture(scope="module")
def vae(diffusers, tmp_path_factory):
    """A small AutoencoderKL of 1x8x8 images, seeded."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = diffusers.AutoencoderKL(
            in_channels=1, out_channels=1, latent_channels=4, block_out_channels=(8, 8), norm_num_groups=4,
            down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2, scaling_factor=0.5,
            shift_factor=0.1,
        )  # fmt: skip
    folder = tmp_path_factory.mktemp("vae")
    made.save_pretrained(folder)
    return folder


def write(folder, data, **changes):
    """An experiment of these data, trained for two steps."""
    content = {**SMALL, "data": data, "network": NETWORK, "sample": {"seeds": "0-15", "batch": 8},
               "shift": {**SMALL["shift"], "images": 24, "batch": 12},
               "train": {**SMALL["train"], "images": 128, "augment": None}, **changes}  # fmt: skip
    (folder / "small.yaml").write_text(yaml.safe_dump(content))


def latents(folder, vae, **changes):
    return {
        "kind": "latents",
        "path": str(folder / "latents.npz"),
        "vae": str(vae),
        "of": {"kind": "digits"},
        **changes,
    }


@pytest.fixture(scope="module")
def encoded(vae, tmp_path_factory):
    """A folder with an experiment on latents of the digits, and their file."""
    folder = tmp_path_factory.mktemp("encoded")
    write(folder, latents(folder, vae))
    done = snrkit(folder, "data", "encode", "-q", "--config", folder / "small.yaml", plain=True)
    assert "1797 latents of 4x4x4, means and deviations, float32" in done.stdout
    data = f"{{kind: latents, path: {folder / 'latents.npz'}, vae: {vae}, of: {{kind: digits}}}}"
    assert done.stdout.endswith(f"\ntrain on them with data: {data}\n")
    return folder


def test_a_file_has_the_posterior_of_every_image(encoded, vae, diffusers):
    """Means, standard deviations and labels as diffusers gives them, the scale, and the fingerprint of the images."""
    found, images = read_latents(encoded / "latents.npz"), Digits().open()
    theirs = diffusers.AutoencoderKL.from_pretrained(vae, low_cpu_mem_usage=False).eval()
    rows = [0, 700, 1796]
    with torch.no_grad():
        posterior = theirs.encode(images.x0(rows)).latent_dist
    torch.testing.assert_close(torch.from_numpy(found.mean[rows]), posterior.mean, rtol=0, atol=1e-5)
    torch.testing.assert_close(torch.from_numpy(found.std[rows]), posterior.std, rtol=0, atol=1e-5)
    assert found.labels.tolist() == images.labels.tolist()
    assert (found.about.fingerprint, found.about.scale) == (images.fingerprint, (0.5,))
    assert found.about.shift == pytest.approx((0.1,))
    codec = load_codec(Autoencoder(path=vae), CPU)
    torch.testing.assert_close(found(rows)[0], codec.encode(images.x0(rows)), rtol=0, atol=1e-5)


def test_the_whole_path_runs_on_latents(encoded, vae):
    """Trained on latents; images are those that their states decode to; scores are beside the originals."""
    for command in COMMANDS:
        snrkit(encoded, command, "-q")
    run = encoded / "runs" / "small"
    opened = open_experiment(load_experiment(encoded / "small.yaml"), WORLD)
    assert opened.data.dataset.shape == (4, 4, 4)
    samples = trajectories(opened, open_model(opened, Run(run)))
    (batch,) = samples.generate(opened.experiment.samplers["euler"], [range(8)])
    wanted = to_bytes(load_codec(Autoencoder(path=vae), CPU).decode(batch.x0))
    assert torch.equal(load_images(run / "samples/euler", range(8)), wanted)
    scores = json.loads((run / "metrics/euler.json").read_text())
    assert scores["reference"].startswith("digits, training split")
    assert scores["summary"]["fd"]["mean"] > 0
    shift = json.loads((run / "shift/euler.json").read_text())
    assert all(map(math.isfinite, shift["norm_gap"]["value"]))
    snrkit(encoded, "report")


def test_without_the_images_scores_are_beside_decoded_latents(encoded, vae, tmp_path):
    """The autoencoder is found by the path that the file names; the images are what its latents decode to."""
    write(tmp_path, {"kind": "latents", "path": str(encoded / "latents.npz")})
    for command in ("train", "sample", "eval-fid"):
        snrkit(tmp_path, command, "-q")
    scores = json.loads((tmp_path / "runs/small/metrics/euler.json").read_text())
    assert scores["reference"].startswith("decoded latents of digits, training split")
    data = open_experiment(load_experiment(tmp_path / "small.yaml"), WORLD).data
    wanted = to_bytes(load_codec(Autoencoder(path=vae), CPU).decode(data.dataset.x0([3, 9])))
    assert torch.equal(data.labelled.pixels([3, 9]), wanted)


def test_the_whole_path_runs_on_haar_coefficients(tmp_path):
    """Trained on coefficients, flips included; images have their own size."""
    write(tmp_path, {"kind": "digits", "representation": {"kind": "haar"}, "flip": True})
    for command in COMMANDS:
        snrkit(tmp_path, command, "-q")
    run = tmp_path / "runs" / "small"
    with Image.open(run / "samples/euler/000000/000000.png") as image:
        assert image.size == (8, 8)
    assert json.loads((run / "metrics/euler.json").read_text())["summary"]["fd"]["mean"] > 0
    assert (run / "shift/euler.json").exists()
    assert "states are Haar coefficients" in snrkit(tmp_path, "sample", "--dry-run").stdout
    refused = snrkit(tmp_path, "export", run, plain=True, check=False)
    assert "its states are no images" in refused.stderr
    changed = snrkit(tmp_path, "train", "-q", "--set", "data.representation.kind=pixels", check=False)
    assert "data.representation" in changed.stderr


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_an_autoencoder_without_a_posterior(tmp_path, diffusers, dtype):
    """AutoencoderTiny's latents are what they are: no standard deviation is kept, and training draws nothing."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = diffusers.AutoencoderTiny(
            in_channels=1, out_channels=1, encoder_block_out_channels=(8, 8), decoder_block_out_channels=(8, 8),
            num_encoder_blocks=(1, 1), num_decoder_blocks=(1, 1), latent_channels=2,
        ).eval()  # fmt: skip
    made.save_pretrained(tmp_path / "tiny")
    write(tmp_path, {"kind": "digits"})
    words = (
        "--vae",
        tmp_path / "tiny",
        "-o",
        tmp_path / "t.npz",
        "--dtype",
        dtype,
        "--config",
        tmp_path / "small.yaml",
    )
    done = snrkit(tmp_path, "data", "encode", "-q", *words, plain=True)
    assert f"1797 latents of 2x4x4, no deviations, {dtype}" in done.stdout
    found, images = read_latents(tmp_path / "t.npz"), Digits().open()
    with torch.no_grad():
        theirs = made.encode(images.x0([3, 5])).latents
    torch.testing.assert_close(found.dataset().x0([3, 5]), theirs, rtol=2e-3, atol=2e-3)
    assert found.std is None
    assert found.mean.dtype == dtype
    codec = load_codec(Autoencoder(path=tmp_path / "tiny"), CPU)
    with torch.no_grad():
        torch.testing.assert_close(codec.decode(theirs), made.decode(theirs).sample, rtol=0, atol=1e-5)


class Made:
    """Batches that were made; at one of them a signal arrives."""

    def __init__(self, monkeypatch):
        self.plain, self.stop, self.rows = data_encode._batch, None, []
        monkeypatch.setattr(data_encode, "_batch", self)

    def __call__(self, images, codec, rows, dtype):
        self.rows.append(rows[0])
        if len(self.rows) == self.stop:
            os.kill(os.getpid(), signal.SIGINT)
        return self.plain(images, codec, rows, dtype)

    def of(self, folder, *words, stop=None):
        """(What a command printed, the first of the images of each batch that it made)."""
        self.stop, self.rows = stop, []
        done = snrkit(folder, "data", "encode", "-q", *words, plain=True, check=False)
        return done, self.rows


def asked(folder, vae, out="x.npz"):
    return "--config", folder / "small.yaml", "--vae", vae, "-o", folder / out


def test_an_encoding_that_was_stopped_goes_on(encoded, vae, tmp_path, monkeypatch):
    """With the batches that are missing, to the same bytes; the folder of finished ones goes when all are there."""
    write(tmp_path, {"kind": "digits"})
    made, words, parts = Made(monkeypatch), asked(tmp_path, vae), tmp_path / "x.npz.parts"
    done, rows = made.of(tmp_path, *words, stop=3)
    assert (done.returncode, rows) == (130, [0, 64, 128])
    said = f"stopped; 192 of 1797 images are encoded and kept in {parts}. To go on, run the same command again.\n"
    assert done.stderr == said
    assert sorted(path.name for path in parts.iterdir()) == [f"{first:08d}.safetensors" for first in rows]
    assert not (tmp_path / "x.npz").exists()
    (parts / "00000064.safetensors").write_bytes((parts / "00000000.safetensors").read_bytes())
    (parts / "00000128.safetensors").write_bytes(b"torn")
    done, rows = made.of(tmp_path, *words)
    assert (done.returncode, rows) == (0, list(range(64, 1797, 64)))
    assert (tmp_path / "x.npz").read_bytes() == (encoded / "latents.npz").read_bytes()
    assert not parts.exists()
    again = [*words[:-1], tmp_path / "y.npz"]
    (tmp_path / "y.npz.parts").mkdir()
    (tmp_path / "y.npz.parts" / "mine.txt").write_text("precious")
    assert made.of(tmp_path, *again)[0].returncode == 0
    assert [path.name for path in (tmp_path / "y.npz.parts").iterdir()] == ["mine.txt"]


@pytest.mark.parametrize("other", ["numbers", "images", "autoencoder", "settings"])
def test_batches_of_something_else_are_made_anew(vae, tmp_path, monkeypatch, other):
    """Of other images, by another autoencoder, in other numbers: the file has the bytes of one that begins anew."""
    few = {"kind": "mixture", "shape": [1, 8, 8], "count": 100, "components": 2}
    write(tmp_path, few)
    shutil.copytree(vae, tmp_path / "vae")
    made, words = Made(monkeypatch), asked(tmp_path, tmp_path / "vae")
    assert made.of(tmp_path, *words, stop=2)[0].returncode == 130
    more = ()
    if other == "numbers":
        more = ("--dtype", "float16")
    elif other == "images":
        more = ("--set", "data.seed=1")
    elif other == "settings":
        more = ("--set", "compute.deterministic=true")
    else:
        weights = tmp_path / "vae/diffusion_pytorch_model.safetensors"
        changed = {name: tensor + 0.01 for name, tensor in load_file(weights).items()}
        save_file(changed, weights, {"format": "pt"})
    done, rows = made.of(tmp_path, *words, *more)
    assert (done.returncode, rows) == (0, [0, 64]), done.stderr
    made.of(tmp_path, *asked(tmp_path, tmp_path / "vae", "y.npz"), *more)
    assert (tmp_path / "x.npz").read_bytes() == (tmp_path / "y.npz").read_bytes()
    assert not list(tmp_path.glob("*.parts"))


class Ended(BaseException):
    """The process would have ended."""


@pytest.mark.parametrize(("kept", "said"), [
    (False, "stopped; nothing was encoded yet. To encode the images, run the same command again."),
    (True, "stopped; what was encoded before is kept in {}/x.npz.parts. To go on, run the same command again."),
])  # fmt: skip
def test_stopped_while_images_are_read(vae, tmp_path, monkeypatch, capfd, kept, said):
    """It is said what is there: nothing, or what an earlier command made."""
    write(tmp_path, {"kind": "digits"})
    if kept:
        Made(monkeypatch).of(tmp_path, *asked(tmp_path, vae), stop=1)

    def ended(code):
        raise Ended(code)

    monkeypatch.setattr(signals.os, "_exit", ended)
    monkeypatch.setattr(Digits, "open", lambda self: os.kill(os.getpid(), signal.SIGINT))
    before = written(tmp_path)
    capfd.readouterr()
    with pytest.raises(Ended, match=r"^130$"):
        snrkit(tmp_path, "data", "encode", "-q", *asked(tmp_path, vae), plain=True)
    assert capfd.readouterr().err == said.format(tmp_path) + "\n"
    assert written(tmp_path) == before


def test_what_cannot_be_encoded_is_refused(encoded, vae, tmp_path):
    """In one sentence, and nothing is written."""
    write(tmp_path, {"kind": "digits"})
    config = ["--config", tmp_path / "small.yaml"]
    out, by = ["-o", tmp_path / "x.npz"], ["--vae", vae]
    (tmp_path / "there.npz").write_bytes(b"")
    (tmp_path / "folder.npz").mkdir()
    (tmp_path / "taken.npz.parts").write_bytes(b"")
    before = written(tmp_path)
    for words, said in (
        ([*config, *out], "--vae: name the folder of the autoencoder"),
        ([*config, *by], "--out: name the file to make"),
        ([*config, *by, "-o", tmp_path / "x.zip"], "does not end in .npz"),
        ([*config, *by, "-o", tmp_path / "small.yaml/x.npz"], "small.yaml is no folder that may be written to"),
        ([*config, *by, "-o", tmp_path / "folder.npz", "--overwrite"], "folder.npz is a folder; name another file"),
        ([*config, *by, *out, "--set", "data.only=[1]"], "data.only: has no effect here"),
        ([*config, *by, *out, "--set", "data.flip=true"], "data.flip: has no effect here"),
        ([*config, *by, "-o", tmp_path / "there.npz"], "there.npz exists already; give --overwrite"),
        ([*config, *by, "-o", tmp_path / "taken.npz"], "taken.npz.parts is no folder, .*; move it away"),
        ([*config, *by, *out, "--dtype", "int8"], "--dtype int8: choose one of float32, float16"),
        ([*config, *out, "--vae", tmp_path / "nothing"], "--vae: .* does not exist"),
        ([*config, *out, "--vae", tmp_path], "--vae: .* has no config.json"),
        ([*config, *by, *out, "--set", "data={kind: gaussian, shape: [1, 7, 8], count: 9}"], "sides that 2 divides"),
        (["--config", encoded / "small.yaml", "--set", "data.of=null", *out], "data.of: name the images"),
    ):  # fmt: skip
        refused = snrkit(tmp_path, "data", "encode", "-q", *words, plain=True, check=False)
        assert refused.returncode == 1
        assert len(refused.stderr.splitlines()) == 1
        assert re.search(said, refused.stderr), refused.stderr
    assert written(tmp_path) == before
