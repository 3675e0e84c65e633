"""EDM2's network: the published names and sizes, and the promise that every layer keeps magnitudes."""

import math
import pickle
import warnings

import numpy as np
import pytest
import torch
from torch.nn import functional

from snrkit.base.errors import ConfigError
from snrkit.checkpoints.edm import EdmModel
from snrkit.diffusion.denoiser import NetworkDenoiser
from snrkit.diffusion.prediction import Cond
from snrkit.networks.edm2 import Block, Edm2UNet, Weight, act, blend, join, unit
from tests.edm_files import Persistent, arguments, network, preconditioned

SMALL = Edm2UNet(channels=16, multipliers=(1, 2), blocks=1, attention=(8,), head_channels=16, classes=3)
GIVEN = {
    "model_channels": 16,
    "channel_mult": [1, 2],
    "num_blocks": 1,
    "attn_resolutions": [8],
    "channels_per_head": 16,
}


def small(gain=1.0):
    """A small network whose gains, which begin at 0, are `gain`."""
    torch.manual_seed(0)
    made = SMALL.make((3, 16, 16)).eval().requires_grad_(False)
    for name, parameter in made.named_parameters():
        if name.endswith("gain"):
            parameter.fill_(gain)
    return made


def size(x):
    return float(x.detach().square().mean().sqrt())


@pytest.mark.parametrize(
    ("channels", "millions"), [(128, 125), (192, 280), (256, 498), (320, 778), (384, 1119), (448, 1523)]
)
def test_sizes_are_the_published_ones(channels, millions):
    """XS, S, M, L, XL and XXL for latent ImageNet-512 (Karras et al. 2024, table 2), on the meta device."""
    with torch.device("meta"):
        made = Edm2UNet(channels=channels, classes=1000).make((4, 64, 64))
    assert abs(sum(p.numel() for p in made.parameters()) / 1e6 - millions) < 1


def test_names_are_those_of_published_files():
    """Of XS, those that its file lists: blocks by resolution, and no bias anywhere."""
    with torch.device("meta"):
        made = Edm2UNet(channels=128, classes=1000).make((4, 64, 64))
    shapes = {name: tuple(value.shape) for name, value in made.state_dict().items()}
    for name, shape in {
        "out_gain": (), "emb_fourier.freqs": (128,), "emb_fourier.phases": (128,), "emb_noise.weight": (512, 128),
        "emb_label.weight": (512, 1000), "enc.64x64_conv.weight": (128, 5, 3, 3), "enc.32x32_down.emb_gain": (),
        "enc.32x32_block0.conv_skip.weight": (256, 128, 1, 1), "enc.32x32_block0.conv_res0.weight": (256, 256, 3, 3),
        "enc.16x16_block2.attn_qkv.weight": (1152, 384, 1, 1), "dec.8x8_in0.attn_proj.weight": (512, 512, 1, 1),
        "dec.64x64_up.emb_linear.weight": (256, 512), "dec.64x64_block3.conv_res0.weight": (128, 256, 3, 3),
        "out_conv.weight": (4, 128, 3, 3),
    }.items():  # fmt: skip
        assert shapes[name] == shape
    assert not any("bias" in name for name in shapes)
    assert "dec.64x64_block3.attn_qkv.weight" not in shapes


def test_parts_keep_magnitudes():
    """Unit mean square in, unit mean square out, to the noise of the draw."""
    n = torch.randn(3, 4, 64, 32, 32, generator=torch.Generator().manual_seed(1))
    a, b, c = n
    torch.manual_seed(0)
    assert size(act(a)) == pytest.approx(1, abs=0.01)
    for share in (0.3, 0.5):
        assert size(blend(a, b, share)) == pytest.approx(1, abs=0.01)
        joined = join(a, b[:, :16], share)
        assert size(joined) == pytest.approx(1, abs=0.01)
        weights = size(joined[:, 64:]) ** 2 * 16, size(joined[:, :64]) ** 2 * 64
        assert weights[0] / weights[1] == pytest.approx((share / (1 - share)) ** 2, rel=0.05)
    assert size(unit(5 * c, 1)) == pytest.approx(1, abs=1e-3)
    for kernel, x in ((3, a), (1, a), (0, a.movedim(1, -1).flatten(0, 2))):
        layer = Weight(64, 64, kernel)
        layer.weight.data *= 7  # of no effect
        assert size(layer(x)) == pytest.approx(1, abs=0.06)
        rows = unit(layer.weight, tuple(range(1, layer.weight.ndim))).flatten(1) / math.sqrt(layer.weight[0].numel())
        torch.testing.assert_close(rows.norm(dim=1), torch.ones(64), rtol=0, atol=1e-3)


@pytest.mark.parametrize("encodes", [True, False])
def test_a_block_is_its_formula(encodes):
    """Every operation of figure 21 written out, with attention as a softmax of explicit products."""
    torch.manual_seed(0)
    block = Block(16, 32, 24, SMALL, encodes, attention=True, resample="down").requires_grad_(False).double()
    block.emb_gain.fill_(0.7)
    x, emb = torch.randn(2, 16, 8, 8).double(), torch.randn(2, 24).double()

    def conv(layer, x, gain=1.0):
        weight = layer.weight / (1e-4 + layer.weight.flatten(1).square().mean(1).sqrt().reshape(-1, 1, 1, 1))
        return functional.conv2d(x, weight * gain / math.sqrt(weight[0].numel()), padding=layer.pad)

    def pixel(x):
        return x / (1e-4 + x.square().mean(1, keepdim=True).sqrt())

    h = x.reshape(2, 16, 4, 2, 4, 2).mean((3, 5))
    if encodes:
        h = pixel(conv(block.conv_skip, h))
    y = conv(block.conv_res0, functional.silu(h) / 0.596)
    rows = block.emb_linear.weight / (1e-4 + block.emb_linear.weight.square().mean(1, keepdim=True).sqrt())
    c = emb @ rows.T * 0.7 / math.sqrt(24) + 1
    y = conv(block.conv_res1, functional.silu(y * c[:, :, None, None]) / 0.596)
    h = h if encodes else conv(block.conv_skip, h)
    h = (0.7 * h + 0.3 * y) / math.sqrt(0.58)
    mixed = conv(block.attn_qkv, h).reshape(2, 2, 16, 3, 16)
    q, k, v = (mixed / (1e-4 + mixed.square().mean(2, keepdim=True).sqrt())).unbind(3)
    w = torch.softmax(torch.einsum("nhcq,nhck->nhqk", q, k) / 4, dim=3)
    out = conv(block.attn_proj, torch.einsum("nhqk,nhck->nhcq", w, v).reshape(2, 32, 4, 4))
    expected = (0.7 * h + 0.3 * out) / math.sqrt(0.58)
    torch.testing.assert_close(block(x, emb), expected, rtol=1e-10, atol=1e-10)


def test_activations_keep_their_size_through_the_network():
    """Between all blocks, from unit input: within a factor of two of 1."""
    made, seen = small(), []
    for layer in [*made.enc.values(), *made.dec.values()]:
        layer.register_forward_hook(lambda _, __, out: seen.append(size(out)))
    x = torch.randn(8, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    made(x, torch.zeros(8), Cond(torch.arange(8) % 3))
    assert len(seen) == len(made.enc) + len(made.dec)
    assert 0.5 < min(seen) < max(seen) < 2


def test_labels_and_their_absence_are_told():
    """Rows do not depend on their neighbours; -1 and no labels at all are zeros of the embedding."""
    made = small()
    x = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    time = torch.tensor([0.1, -0.4, 0.1])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        all_of_them = made(x, time, Cond(torch.tensor([0, 2, -1])))
    torch.testing.assert_close(made(x[1:2], time[1:2], Cond(torch.tensor([2]))), all_of_them[1:2], rtol=0, atol=1e-5)
    torch.testing.assert_close(made(x[2:], time[2:]), all_of_them[2:], rtol=0, atol=1e-5)
    other = made(x[2:], time[2:], Cond(torch.tensor([1])))
    assert (other - all_of_them[2:]).abs().max() > 1e-3


@pytest.mark.parametrize(
    "scale",
    [np.zeros(3), np.array([1.0, 0.0, 1.0]), np.ones(2), np.array([1, np.nan, 1]), np.array(["a"]), None, b"ab"],
)
def test_an_encoder_that_says_nothing_is_refused(scale, tmp_path):
    """Rows of numbers are read without NumPy, and others are none."""
    state = {"scale": scale, "bias": np.float32([1, 2, 3])}
    outer = preconditioned("Precond", network("UNet", small(), arguments(GIVEN, 3)), (3, 16, 16), 3, sigma_data=0.5)
    path = tmp_path / "edm2.pkl"
    path.write_bytes(pickle.dumps({"ema": outer, "encoder": Persistent("StabilityVAEEncoder", state)}, protocol=4))
    with pytest.raises(ConfigError, match="has no usable scale"):
        EdmModel(path=path, vae=tmp_path).autoencoder()


def test_a_model_of_images_takes_no_autoencoder(tmp_path):
    """Other encoders, and none, are of images."""
    outer = preconditioned("Precond", network("UNet", small(), arguments(GIVEN, 3)), (3, 16, 16), 3, sigma_data=0.5)
    path = tmp_path / "edm2.pkl"
    path.write_bytes(pickle.dumps({"ema": outer, "encoder": Persistent("StandardRGBEncoder", {})}, protocol=4))
    assert EdmModel(path=path).autoencoder() is None
    with pytest.raises(ConfigError, match=r"has no effect, as .* makes images; drop it"):
        EdmModel(path=path, vae=tmp_path).autoencoder()


def test_an_edm2_file_is_read(tmp_path):
    """D(x) = c_skip x + c_out F(c_in x, ln(sigma)/4), sigma_data 0.5, from the file's bytes."""
    made = small(0.4)
    inner = network("UNet", made, arguments(GIVEN, 3))
    for key in ("in_channels", "out_channels"):
        inner.state["_init_kwargs"].pop(key)
    outer = preconditioned("Precond", inner, (3, 16, 16), 3, sigma_data=0.5)
    outer.state["_modules"]["unet"] = outer.state["_modules"].pop("model")
    for key in ("sigma_min", "sigma_max"):
        outer.state.pop(key)
    scale = np.float32(0.5) / np.float32([4.17, 4.62, 3.71])
    state = {"scale": scale, "bias": -np.float32([5.81, 3.25, 0.12]) * scale, "vae_name": "theirs", "_vae": None}
    path = tmp_path / "edm2.pkl"
    content = {"ema": outer, "encoder": Persistent("StabilityVAEEncoder", state), "dataset_kwargs": {}}
    path.write_bytes(pickle.dumps(content, protocol=4))
    model = EdmModel(path=path, vae=tmp_path)
    latents = model.autoencoder()
    assert latents.unit
    assert latents.scale == pytest.approx((0.5 / 4.17, 0.5 / 4.62, 0.5 / 3.71))
    assert latents.shift == pytest.approx((5.81, 3.25, 0.12))
    with pytest.raises(ConfigError, match=r"makes latents; give the folder of their autoencoder \(theirs\)"):
        EdmModel(path=path).autoencoder()
    found = model.describe()
    assert (found.network.classes, found.network.null_label) == (3, False)
    denoise = NetworkDenoiser(model.load().eval(), found.process, found.target, found.precondition, found.sigma_data)
    x = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    sigma, labels = torch.tensor([0.3, 4.0], dtype=torch.float64), Cond(torch.tensor([0, 2]))
    wide = sigma[:, None, None, None].float()
    total = wide**2 + 0.25
    expected = 0.25 / total * x + 0.5 * wide / total.sqrt() * made(x / total.sqrt(), (sigma.log() / 4).float(), labels)
    with torch.no_grad():
        made_of_file = denoise(x.double(), found.process.level(-2 * sigma.log()), cond=labels).x0
    torch.testing.assert_close(made_of_file.float(), expected, rtol=0, atol=1e-5)
