"""Latents in a file: what is drawn of them, what is counted, and files that are not what they say."""

import errno
import json
import os
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from snrkit.base.distributed import World
from snrkit.base.errors import SnrkitError
from snrkit.base.sealed import sealed
from snrkit.base.streams import LATENTS_TRAIN
from snrkit.checkpoints.codec import autoencoder_digest
from snrkit.checkpoints.foreign import Autoencoder
from snrkit.checkpoints.ours import list_checkpoints, load_checkpoint
from snrkit.commands.opening import _say
from snrkit.data.dataset import moments, restrict
from snrkit.data.digits import Digits
from snrkit.data.files import Folder
from snrkit.data.latents import About, Encoded, Latents, read_latents, write_latents
from snrkit.experiment.experiment import parse_experiment
from snrkit.experiment.opening import open_experiment
from snrkit.training.batches import micro_batch
from snrkit.training.holdout import held_out_loss
from snrkit.training.randomness import Plan
from tests.faults import Disk, watched
from tests.opened import open_network, open_task
from tests.small import SMALL, snrkit
from tests.training.test_train import log_without_times

WORLD = World(0, 1, torch.device("cpu"))
COUNT, SHAPE = 200, (2, 4, 4)


@pytest.fixture
def vae(tmp_path):
    """A folder that is called an autoencoder, of weights that nothing in these tests decodes by."""
    folder = tmp_path / "vae"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"_class_name": "AutoencoderKL"}))
    (folder / "diffusion_pytorch_model.safetensors").write_bytes(b"\2" + bytes(7) + b"{}")
    return folder


def made(vae, dtype=np.float32, posterior=True, scale=(0.5,), shift=(0.25,)):
    """Latents of made-up images."""
    rng = np.random.default_rng(0)
    mean = (1 + rng.standard_normal((COUNT, *SHAPE))).astype(dtype)
    std = rng.uniform(0.1, 0.8, (COUNT, *SHAPE)).astype(dtype)
    about = About("digits", (1, 8, 8), "f" * 32, str(vae), autoencoder_digest(Autoencoder(path=vae)), scale, shift, {})
    return Encoded(about, mean, std if posterior else None, np.arange(COUNT) % 4)


@pytest.fixture
def file(tmp_path, vae):
    write_latents(tmp_path / "latents.npz", made(vae))
    return tmp_path / "latents.npz"


def experiment(file, **train):
    content = {**SMALL, "data": {"kind": "latents", "path": str(file)},
               "network": {"kind": "mlp", "dim": 8, "depth": 1, "classes": 4},
               "train": {**SMALL["train"], "augment": None, **train}}  # fmt: skip
    return content


def opened(file, **train):
    return open_experiment(parse_experiment(experiment(file, **train), "small"), WORLD)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("posterior", [True, False])
def test_a_file_gives_back_what_was_encoded(tmp_path, vae, dtype, posterior):
    """To the bit, in the numbers in which it was kept."""
    encoded = made(vae, dtype, posterior)
    write_latents(tmp_path / "x.npz", encoded)
    found = read_latents(tmp_path / "x.npz")
    for name in ("mean", "std", "labels"):
        a, b = getattr(encoded, name), getattr(found, name)
        assert (a is None) == (b is None)
        assert a is None or (a.dtype == b.dtype and np.array_equal(a, b))
    assert replace(found.about, sums={}) == encoded.about
    assert found.dataset().shape == SHAPE


def test_the_spread_counts_every_draw(file):
    """The variance of all latents is that of the means plus the mean variance of the posterior; so sigma_data says."""
    encoded, dataset = read_latents(file), Latents(path=file).open()
    rows = list(range(0, COUNT, 3))
    mean = (encoded.mean[rows].astype(np.float64) - 0.25) * 0.5
    std = encoded.std[rows].astype(np.float64) * 0.5
    found = moments(dataset, rows)
    assert found.variance == pytest.approx(mean.var() + (std**2).mean(), rel=1e-6)
    assert found.pixel_variance == pytest.approx((mean.var(0) + (std**2).mean(0)).mean(), rel=1e-6)
    opened_data = opened(file).data
    assert opened_data.sigma_data == round(moments(opened_data.dataset, opened_data.split.train).sigma_data, 6)
    drawn = dataset.x0(rows).double()
    assert float(drawn.var()) == pytest.approx(found.variance, rel=0.1)  # of one draw each
    assert found.variance > 1.2 * mean.var()
    task = open_task(opened(file))
    shown = torch.cat([task.pixels(task.plan().draw(step, range(4))) for step in range(20)]).double()
    assert float(shown.std()) == pytest.approx(opened_data.sigma_data, rel=0.02)  # of fresh ones


def test_training_draws_by_seed_step_and_slice(file):
    """z = mean + std*n, n of a stream of its own: however slices are dealt out, and whatever else is drawn."""
    task = open_task(opened(file))
    plan, encoded = task.plan(), read_latents(file)
    drawn = plan.draw(7, [1, 2])
    for place, index in enumerate((1, 2)):
        rows = slice(16 * place, 16 * place + 16)
        n = LATENTS_TRAIN.open(0, 7, index).standard_normal((16, *SHAPE), dtype=np.float32)
        assert np.array_equal(drawn.latents[rows].numpy(), n)
        alone = plan.draw(7, [index])
        assert torch.equal(task.pixels(drawn)[rows], task.pixels(alone))
        images = task.images(alone).tolist()
        mean, std = (torch.from_numpy(part[images]) for part in (encoded.mean, encoded.std))
        wanted = (mean - 0.25) * 0.5 + std * 0.5 * torch.from_numpy(n)
        assert torch.equal(micro_batch(task, alone, task.pixels(alone)).x0, wanted)
    plain = Plan(plan.seed, plan.batch, plan.slice, plan.pool, plan.shape).draw(7, [1, 2])
    assert plain.latents is None
    for name in ("positions", "level", "label_drop", "noise_drop", "flip", "augment", "noise", "chance", "scalars"):
        assert torch.equal(getattr(plain, name), getattr(drawn, name))
    assert not torch.equal(plan.draw(8, [1]).latents, plan.draw(7, [1]).latents)


def test_all_else_is_given_one_draw_of_each_image(file, vae):
    """In any order, batch and choice of labels the same, and with the right spread."""
    dataset, encoded = Latents(path=file).open(), read_latents(file)
    whole = dataset.x0(range(COUNT))
    assert torch.equal(dataset.x0([5, 3, 5]), whole[[5, 3, 5]])
    some = restrict(dataset, [1, 3])
    assert torch.equal(some.x0([0, 1]), whole[[1, 3]])
    assert torch.equal(some.posterior([1])[0], dataset.posterior([3])[0])
    mean, std = dataset.posterior(range(COUNT))
    standard = ((whole - mean) / std).double()
    assert abs(float(standard.mean())) < 5 / standard.numel() ** 0.5
    assert abs(float(standard.square().mean()) - 1) < 5 * (2 / standard.numel()) ** 0.5
    without = Encoded(encoded.about, encoded.mean, None, encoded.labels).dataset()
    assert torch.equal(without.x0([4]), mean[[4]])
    assert without.posterior is None


def test_held_out_losses_repeat(file):
    """They see the same draw of each image, however often they are asked."""
    found = opened(file)
    task, network = open_task(found), open_network(found)
    assert held_out_loss(task, network) == held_out_loss(task, network)


def test_a_training_on_latents_resumes_bit_for_bit(tmp_path, file):
    """In two runs of the command, and in two micro-batches a step, as in one."""
    (tmp_path / "small.yaml").write_text(
        yaml.safe_dump(experiment(file, images=640, save_every=320, log_every=320, holdout_every=320))
    )
    snrkit(tmp_path, "train", "-q")
    for name, changes in (("parts", ["train.images=320"]), ("parts", []), ("micro", ["train.accumulate=2"])):
        sets = [word for change in (f"name={name}", *changes) for word in ("--set", change)]
        snrkit(tmp_path, "train", "-q", *sets)
    runs = [tmp_path / "runs" / name for name in ("small", "parts", "micro")]
    whole, parts, micro = (load_checkpoint(list_checkpoints(run / "checkpoints")[-1]).tensors for run in runs)
    for name, tensors in whole.items():
        assert all(torch.equal(tensor, parts[name][key]) for key, tensor in tensors.items())
    assert log_without_times(runs[0] / "train.jsonl") == log_without_times(runs[1] / "train.jsonl")
    for key, tensor in whole["network"].items():
        torch.testing.assert_close(tensor, micro["network"][key], rtol=0, atol=1e-5)


def test_another_file_is_another_training(tmp_path, file, vae):
    """A run knows its latents by their content: the same file elsewhere goes on, another is refused."""
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(experiment(file, images=128)))
    snrkit(tmp_path, "train", "-q")
    file.rename(tmp_path / "moved.npz")
    moved = ["--set", f"data.path={tmp_path / 'moved.npz'}"]
    snrkit(tmp_path, "train", "-q", *moved)
    write_latents(tmp_path / "other.npz", made(vae, scale=(0.51,)))
    other = ["--set", f"data.path={tmp_path / 'other.npz'}", "--set", "data.sigma_data=0.5"]
    refused = snrkit(tmp_path, "train", "-q", *other, check=False)
    assert refused.returncode == 1
    assert "another experiment" in refused.stderr or "the images differ" in refused.stderr


def test_a_disk_that_fails_leaves_no_file(tmp_path, vae):
    """At whichever write, rename or flush: the file is whole or not there, and nothing is left beside it."""
    encoded, path = made(vae), tmp_path / "out" / "latents.npz"
    disk = Disk(tmp_path)
    with watched(disk):
        write_latents(path, encoded)
    events = [event for event in disk.events if event[0] != "read"]
    assert len(events) > 4
    for event in events:
        shutil.rmtree(path.parent)
        with watched(Disk(tmp_path, event, errno.ENOSPC)), pytest.raises(OSError, match="No space"):
            write_latents(path, encoded)
        if path.exists():  # the folder's own flush failed, after the rename
            read_latents(path)
        path.parent.mkdir(exist_ok=True)
        assert list(path.parent.glob(".*")) == []


def forged(path, vae, **arrays):
    """A file of these arrays in place of the right ones (None: without), with checksums that fit."""
    encoded = made(vae)
    parts = {"mean": encoded.mean, "std": encoded.std, "labels": encoded.labels, **arrays}
    parts = {name: part for name, part in parts.items() if part is not None}
    write_latents(path, Encoded(encoded.about, parts["mean"], parts.get("std"), parts.get("labels")))


def changed(value, array, at=7):
    copy = array.copy()
    copy[at, 0, 1, 2] = value
    return copy


WRONG = {
    "std of another shape": (lambda e: {"std": e.std[:, :1]}, r"std is float32 \(200, 1, 4, 4\), and mean float32"),
    "std of other numbers": (lambda e: {"std": e.std.astype(np.float16)}, "std is float16"),
    "flat means": (
        lambda e: {"mean": e.mean[0]},
        r"mean must be float16 or float32 \(n, C, H, W\), not float32 \(2, 4",
    ),
    "whole means": (lambda e: {"mean": e.mean.astype(np.int32)}, "mean must be float16 or float32"),
    "no means": (lambda e: {"mean": e.mean[:0], "std": e.std[:0]}, "mean must be"),
    "few labels": (lambda e: {"labels": e.labels[:5]}, "labels must be 200 int64"),
    "labels of floats": (lambda e: {"labels": e.labels.astype(float)}, "labels must be 200 int64, not float64"),
    "a negative label": (lambda e: {"labels": e.labels - 1}, "label -1; labels count from 0"),
    "NaN": (lambda e: {"mean": changed(np.nan, e.mean)}, "mean of image 7 is not finite"),
    "infinity": (lambda e: {"std": changed(np.inf, e.std)}, "std of image 7 is not finite"),
    "a negative spread": (lambda e: {"std": changed(-0.1, e.std)}, "std of image 7 is negative"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_arrays_that_are_no_latents_are_refused(tmp_path, vae, kind):
    """Whatever their checksums say: one sentence, which names the file."""
    change, said = WRONG[kind]
    path = tmp_path / "x.npz"
    forged(path, vae, **change(made(vae)))
    with pytest.raises(SnrkitError, match=said) as error:
        Latents(path=path).open()
    assert "\n" not in str(error.value)


def about_of(vae, **changes):
    encoded = made(vae)
    about = json.loads(json.dumps({**{name: getattr(encoded.about, name) for name in About.__slots__}, **changes}))
    return np.frombuffer(json.dumps(sealed(about)).encode(), dtype=np.uint8)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (lambda e, v: {"mean": e.mean}, "has no array about"),
        (lambda e, v: {"about": about_of(v)}, "has no array mean"),
        (lambda e, v: {"about": np.zeros(4, np.uint8), "mean": e.mean}, "holds no readable latents"),
        (lambda e, v: {"about": np.array([object()]), "mean": e.mean}, "holds objects"),
        (lambda e, v: {"about": about_of(v, more=1), "mean": e.mean}, "more is unknown"),
        (lambda e, v: {"about": about_of(v, scale="1"), "mean": e.mean}, "scale is '1'"),
        (lambda e, v: {"about": about_of(v, scale=[0.0]), "mean": e.mean}, "a scale that is not above 0"),
        (lambda e, v: {"about": about_of(v, scale=[1.0, 2.0, 3.0]), "mean": e.mean}, "scale has 3 numbers for 2"),
        (lambda e, v: {"about": about_of(v, image=[1, 8]), "mean": e.mean}, r"which is no \(C, H, W\)"),
        (lambda e, v: {"about": about_of(v), "mean": e.mean}, "the checksum of mean does not fit"),
        (lambda e, v: {"about": about_of(v, sums={"cov": "0"}), "mean": e.mean}, "the checksum of"),
    ],
)
def test_files_that_are_not_as_written_are_refused(tmp_path, vae, content, said):
    """One sentence each; no object is made of what they hold."""
    path = tmp_path / "x.npz"
    np.savez(path, **content(made(vae), vae))
    with pytest.raises(SnrkitError, match=said) as error:
        Latents(path=path).open()
    assert "\n" not in str(error.value)


def test_what_is_no_file_of_arrays_is_refused(tmp_path, vae):
    """Absent, a folder, a pipe, a text, a file that is cut, one with a byte changed."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "text").write_text("latents")
    write_latents(tmp_path / "cut", made(vae))
    content = (tmp_path / "cut").read_bytes()
    (tmp_path / "cut").write_bytes(content[: len(content) // 2])
    changed = bytearray(content)
    changed[len(content) // 2] ^= 1
    (tmp_path / "changed").write_bytes(changed)
    for name, said in (
        ("absent", "does not exist; make it with snrkit data encode"), ("vae", "no file but a folder"),
        ("pipe", "a named pipe"), ("text", "no readable latents"), ("cut", "no readable latents"),
        ("changed", "no readable latents"),
    ):  # fmt: skip
        with pytest.raises(SnrkitError, match=said):
            Latents(path=tmp_path / name).open()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"flip": True}, "flip: latents of a mirrored image"),
        ({"representation": {"kind": "haar"}}, "representation: latents are a representation of their own"),
        ({"of": {"kind": "digits", "flip": True}}, "of.flip: has no effect here; set data.flip instead"),
        ({"of": {"kind": "digits", "holdout": 0.2}}, "of.holdout: has no effect here"),
        ({"of": {"kind": "latents", "path": "x.npz"}}, "of: these are latents too"),
    ],
)
def test_settings_that_cannot_act_on_latents_are_refused(file, changes, said):
    """When the file is read."""
    content = experiment(file)
    content["data"] |= changes
    with pytest.raises(SnrkitError, match=said):
        parse_experiment(content, "small")


def test_augmentation_of_latents_is_refused(file):
    """Before anything is trained."""
    content = experiment(file, augment={"kind": "edm"})
    content["network"] = {**SMALL["network"]}
    with pytest.raises(SnrkitError, match=r"train.augment: latents of a warped image"):
        open_experiment(parse_experiment(content, "small"), WORLD)


def test_another_autoencoder_is_refused(file, vae):
    """By the content of its configuration and weights; what else lies beside them does not count."""
    (vae / "README.md").write_text("new")
    opened(file)
    (vae / "diffusion_pytorch_model.safetensors").write_bytes(b"\2" + bytes(7) + b"{} ")
    with pytest.raises(SnrkitError, match=r"data.vae: .* is not the autoencoder that .* was made by"):
        opened(file)


def pictures(path, count, side=8):
    """A folder of grey images."""
    path.mkdir()
    for index in range(count):
        values = np.full((side, side), index, dtype=np.uint8)
        Image.fromarray(values).save(path / f"{index:03d}.png")


def test_images_of_another_set_are_refused(tmp_path, file):
    """When the experiment is opened, as far as is seen without reading all files: by number and shape, or by
    the content of what is in memory anyway.
    """
    for name, count, side in (("few", 3, 8), ("small", COUNT, 4), ("alike", COUNT, 8)):
        pictures(tmp_path / name, count, side)
    np.savez(tmp_path / "few.npz", np.zeros((3, 8, 8, 1), dtype=np.uint8))
    np.savez(tmp_path / "flat.npz", np.zeros((3, 8), dtype=np.uint8))
    for of, said in (
        ({"kind": "digits"}, r"data.of: digits has other images than those that .*latents.npz was made of; name these"),
        ({"kind": "folder", "path": tmp_path / "few"}, f"data.of: there are 3 images of 1x8x8, not the {COUNT} i"),
        ({"kind": "folder", "path": tmp_path / "small"}, f"there are {COUNT} images of 1x4x4, not the"),
        ({"kind": "npz", "path": tmp_path / "few.npz"}, "there are 3 images of 1x8x8, not the"),
        ({"kind": "npz", "path": tmp_path / "flat.npz"}, r"arr_0 must be uint8 \(n, H, W, C\)"),
    ):
        with pytest.raises(SnrkitError, match=said):
            open_experiment(of_these(file, of), WORLD)
    data = open_experiment(of_these(file, {"kind": "folder", "path": tmp_path / "alike"}), WORLD).data
    assert data.labelled.shape == (1, 8, 8)
    with pytest.raises(SnrkitError, match=r"data.of: .*alike has other images than those that"):
        data.labelled.x0([0])


def of_these(file, of):
    content = experiment(file)
    content["data"]["of"] = {key: str(value) for key, value in of.items()}
    return parse_experiment(content, "small")


def test_a_training_reads_the_images_once_before_it_begins(tmp_path, file):
    """And says so; those of another set are refused, and nothing is written. One that goes on reads none."""
    pictures(tmp_path / "alike", COUNT)
    content = experiment(file, images=64)
    content["data"]["of"] = {"kind": "folder", "path": str(tmp_path / "alike")}
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(content))
    snrkit(tmp_path, "train", "--dry-run")  # what is known without reading them fits
    refused = snrkit(tmp_path, "train", "-q", check=False)
    assert refused.returncode == 1
    assert "alike has other images than those that" in refused.stderr
    assert not (tmp_path / "runs").exists()
    own = replace(read_latents(file).about, fingerprint=Folder(path=tmp_path / "alike").open().fingerprint)
    write_latents(file, replace(read_latents(file), about=own))
    said = "data.of: its images are read once, to see that the latents are of these"
    _say.cache_clear()
    assert said in snrkit(tmp_path, "train", "-q").stderr
    _say.cache_clear()
    assert said not in snrkit(tmp_path, "train", "-q").stderr


def test_the_images_are_those_that_were_encoded(tmp_path, vae):
    """Where their fingerprint fits."""
    images = Digits().open()
    encoded = made(vae)
    about = replace(encoded.about, fingerprint=images.fingerprint)
    write_latents(tmp_path / "x.npz", replace(encoded, about=about))
    content = experiment(tmp_path / "x.npz")
    content["data"]["of"] = {"kind": "digits"}
    content["data"]["only"] = [1]
    data = open_experiment(parse_experiment(content, "small"), WORLD).data
    assert torch.equal(data.labelled.pixels([0, 2]), images.pixels([1, 9]))
