"""Latent models: images in, latents through the sampler, images out."""

import json

import pytest
import torch
from PIL import Image

from snrkit.base.errors import ConfigError
from snrkit.checkpoints.codec import load_codec
from snrkit.checkpoints.foreign import Autoencoder
from snrkit.data.digits import Digits
from snrkit.experiment.experiment import parse_experiment
from snrkit.experiment.opening import open_experiment
from tests.checkpoints.test_diffusers import transformer
from tests.checkpoints.test_models_from_elsewhere import ASKED, STEPS
from tests.small import snrkit
from tests.spectral.test_levels import WORLD

diffusers = pytest.importorskip("diffusers")
CPU = torch.device("cpu")


def autoencoder():
    """Of 1x8x8 images, with latents of 4x4x4."""
    return diffusers.AutoencoderKL(
        in_channels=1, out_channels=1, latent_channels=4, block_out_channels=(8, 8), norm_num_groups=4,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2, scaling_factor=0.5,
        shift_factor=0.1,
    )  # fmt: skip


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    """A folder with a DiT on latents of 4x4x4 and the autoencoder of 1x8x8 images, both small and random."""
    vae = autoencoder()
    folder = tmp_path_factory.mktemp("latent")
    for name, part in (
        ("transformer", transformer(side=4, layers=1)),
        ("vae", vae),
        ("scheduler", diffusers.DDIMScheduler(clip_sample=False)),
    ):
        part.save_pretrained(folder / name)
    return folder


def test_latents_are_the_scaled_means_of_the_autoencoder(pipeline):
    """(mean - shift) * scale, the same at every call and in any order; decoding undoes the scale."""
    codec, images = load_codec(Autoencoder(path=pipeline / "vae"), CPU), Digits().open()
    latents = codec.states(images)
    assert (latents.shape, latents.count, latents.classes) == ((4, 4, 4), images.count, 10)
    theirs = diffusers.AutoencoderKL.from_pretrained(pipeline / "vae", low_cpu_mem_usage=False)
    with torch.no_grad():
        mean = theirs.encode(images.x0([3, 5])).latent_dist.mean
        back = theirs.decode(mean).sample
    torch.testing.assert_close(latents.x0([3, 5]), (mean - 0.1) * 0.5, rtol=0, atol=1e-5)
    torch.testing.assert_close(codec.decode(latents.x0([3, 5])), back, rtol=0, atol=1e-5)
    assert torch.equal(latents.x0([5, 9, 3])[::2], latents.x0([5, 3]))
    assert latents.fingerprint != images.fingerprint


def test_the_whole_path_runs_on_latents(pipeline, tmp_path):
    """Images are saved at their own size; shift is that of latents; scores are of images."""
    asked = {**ASKED, "samplers": {"ddim": STEPS}, "model": {"kind": "diffusers", "path": str(pipeline)}}
    (tmp_path / "small.yaml").write_text(json.dumps(asked))
    snrkit(tmp_path, "run", "-q")
    run = tmp_path / "runs" / "small"
    with Image.open(run / "samples/ddim/000000/000000.png") as image:
        assert image.size == (8, 8)
    shift = json.loads((run / "shift/ddim.json").read_text())
    assert set(shift["part_ratio"]) >= {"ll", "lh", "hl", "hh"}
    scores = json.loads((run / "metrics/ddim.json").read_text())
    assert scores["summary"]["fd"]["mean"] > 0


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"data": {"kind": "digits", "flip": True}}, "data.flip: latents of a mirrored image"),
        ({"data": {"kind": "digits", "representation": {"kind": "haar"}}}, "data: the model encodes images itself"),
        (
            {"data": {"kind": "gaussian", "shape": [3, 8, 8], "count": 64}},
            "images are 3x8x8; the autoencoder takes 1",
        ),
        ({"data": {"kind": "gaussian", "shape": [1, 9, 8], "count": 64}}, "sides that 2 divides"),
        (
            {"data": {"kind": "gaussian", "shape": [1, 16, 16], "count": 64}},
            "model.vae: its latents of these images are 4x8x8, and the model's",
        ),
    ],
)
def test_images_that_do_not_fit_are_refused(pipeline, changes, said):
    """One sentence."""
    content = {"name": "x", **ASKED, "model": {"kind": "diffusers", "path": str(pipeline)}, **changes}
    with pytest.raises(ConfigError, match=said):
        open_experiment(parse_experiment(content, "x.yaml"), WORLD)


def test_processes_that_read_images_make_no_latents(pipeline, monkeypatch, tmp_path):
    """A set that is not held in memory: its autoencoder lies on a device that they do not share."""
    monkeypatch.setattr("snrkit.data.files.IN_MEMORY_BYTES", 10)
    for name in "ab":
        Image.new("L", (8, 8)).save(tmp_path / f"{name}.png")
    data = {"kind": "folder", "path": str(tmp_path), "workers": 2}
    content = {"name": "x", **ASKED, "model": {"kind": "diffusers", "path": str(pipeline)}, "data": data}
    with pytest.raises(ConfigError, match=r"data\.workers: has no effect, as images become latents"):
        open_experiment(parse_experiment(content, "x.yaml"), WORLD)


def test_a_folder_that_is_no_autoencoder_is_refused(pipeline):
    """By its class."""
    with pytest.raises(ConfigError, match="a DiTTransformer2DModel cannot be read; AutoencoderKL, AutoencoderDC"):
        load_codec(Autoencoder(path=pipeline / "transformer"), CPU)


def test_an_autoencoder_without_a_posterior(tmp_path):
    """Sana's: its latents are times a scale, and its sides fall by each of its blocks but one."""
    torch.manual_seed(0)
    made = diffusers.AutoencoderDC(
        in_channels=1, latent_channels=4, attention_head_dim=4, encoder_block_types="ResBlock",
        decoder_block_types="ResBlock", encoder_block_out_channels=(8, 8, 8), decoder_block_out_channels=(8, 8, 8),
        encoder_layers_per_block=(1, 1, 1), decoder_layers_per_block=(1, 1, 1), encoder_qkv_multiscales=((), (), ()),
        decoder_qkv_multiscales=((), (), ()), scaling_factor=0.4,
    ).eval()  # fmt: skip
    made.save_pretrained(tmp_path)
    codec, images = load_codec(Autoencoder(path=tmp_path), CPU), Digits().open().x0([3, 5])
    with torch.no_grad():
        latents = made.encode(images).latent
        back = made.decode(latents).sample
    assert codec.shape((1, 8, 8)) == tuple(latents.shape[1:]) == (4, 2, 2)
    torch.testing.assert_close(codec.encode(images), 0.4 * latents, rtol=0, atol=1e-5)
    torch.testing.assert_close(codec.decode(0.4 * latents), back, rtol=0, atol=1e-4)


def test_scales_by_channel_and_images_in_0_1(pipeline):
    """As EDM2's files say of their latents: (latents - shift)*scale, of images that begin at 0."""
    scale, shift = (0.1, 0.2, 0.3, 0.4), (1.0, -1.0, 0.0, 2.0)
    codec = load_codec(Autoencoder(path=pipeline / "vae", scale=scale, shift=shift, unit=True), CPU)
    images = Digits().open().x0([3, 5])
    theirs = diffusers.AutoencoderKL.from_pretrained(pipeline / "vae", low_cpu_mem_usage=False)
    with torch.no_grad():
        mean = theirs.encode((images + 1) / 2).latent_dist.mean
        back = 2 * theirs.decode(mean).sample - 1
    rows = [torch.tensor(row)[:, None, None] for row in (scale, shift)]
    torch.testing.assert_close(codec.encode(images), (mean - rows[1]) * rows[0], rtol=0, atol=1e-5)
    torch.testing.assert_close(codec.decode(codec.encode(images)), back, rtol=0, atol=1e-4)
    with pytest.raises(ConfigError, match="makes 4 channels, for a model of 2"):
        load_codec(Autoencoder(path=pipeline / "vae", scale=(1.0, 1.0), shift=(0.0, 0.0)), CPU)


def test_few_latents_are_kept(pipeline, monkeypatch):
    """Beyond what is kept, they are encoded again, to the same."""
    monkeypatch.setattr("snrkit.checkpoints.codec.KEPT", 1)
    codec, images = load_codec(Autoencoder(path=pipeline / "vae"), CPU), Digits().open()
    few = codec.states(images)
    order = list(range(130))
    first = few.x0(order)
    torch.testing.assert_close(few.x0(order[::-1]).flip(0), first, rtol=0, atol=1e-6)
