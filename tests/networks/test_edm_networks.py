"""EDM's published networks: names, counts and outputs of the originals."""

import pytest
import torch

from snrkit.diffusion.prediction import Cond
from snrkit.networks.edm import Conv, DhariwalUNet, SongUNet

SIDE, CLASSES = 16, 7
SMALL = {"channels": 16, "multipliers": (1, 2), "blocks": 1, "attention": (8,)}
NETWORKS = {
    "edm": SongUNet(**SMALL),
    "vp": SongUNet(**SMALL, classes=10),
    "adm": DhariwalUNet(**{**SMALL, "channels": 32}, classes=CLASSES),
}
COUNTS = {"edm": (189_347, 142), "vp": (189_523, 144), "adm": (828_387, 145)}
FIRST = {
    "edm": ["16x16_aux_conv.bias", "16x16_aux_conv.weight", "16x16_aux_norm.bias", "16x16_aux_norm.weight"],
    "vp": ["16x16_aux_conv.bias", "16x16_aux_conv.weight", "16x16_aux_norm.bias", "16x16_aux_norm.weight"],
    "adm": ["16x16_block0.affine.bias", "16x16_block0.affine.weight", "16x16_block0.conv0.bias",
            "16x16_block0.conv0.weight"],
}  # fmt: skip
# What the originals made, in float32, of weights and inputs by formula: mean, deviation, and four elements.
GOLDEN = {
    ("edm", 0.05): (-0.01480711, 0.80264154, [0.51737034, -1.0090283, -0.80437803, 0.30266732]),
    ("edm", 0.7): (-0.16509394, 0.92343534, [0.36261183, -0.2175336, -0.48796642, 1.7977498]),
    ("edm", 9.0): (-0.20203820, 1.03125866, [0.25532871, 0.12537180, -0.43594903, 2.0165553]),
    ("vp", 0.05): (0.02634359, 0.79229111, [0.47480902, -1.0691532, -0.74714059, -0.23203066]),
    ("vp", 0.7): (0.32248279, 1.89429331, [0.14067081, -1.4348078, -0.13762498, -4.0056863]),
    ("vp", 9.0): (4.15762969, 23.58993134, [0.0088067, -14.794882, 2.1747298, -52.2218895]),
    ("adm", 0.05): (0.02642180, 0.78134124, [0.49954829, -1.0115583, -0.75285792, 0.0836776]),
    ("adm", 0.7): (0.13875637, 0.23138146, [0.20195509, -0.19181041, -0.09132902, 0.24306776]),
    ("adm", 9.0): (0.15935312, 0.10471923, [0.05322133, 0.17494439, 0.04304587, 0.27437287]),
}


def filled(kind):
    """The network with 0.08 sin(0.37 i + 1.3 j) at place i of the j-th name, and 1 more where norms scale."""
    network = NETWORKS[kind].make((3, SIDE, SIDE)).eval().requires_grad_(False)
    for j, (name, p) in enumerate(sorted(network.named_parameters())):
        value = 0.08 * torch.sin(0.37 * torch.arange(p.numel(), dtype=torch.float64) + 1.3 * j)
        p.copy_((value + (p.ndim == 1 and name.endswith("weight"))).reshape(p.shape))
    return network


def preconditioned(kind, network, x, sigma, labels):
    """D(x) by EDM's or, for `vp`, by VP's preconditioning."""
    wide = sigma[:, None, None, None]
    if kind == "vp":
        time = 999 * ((0.01 + 2 * 19.9 * torch.log1p(sigma**2)).sqrt() - 0.1) / 19.9
        return x - wide * network(x * (wide**2 + 1).rsqrt(), time, Cond(labels))
    total = wide**2 + 0.25
    inner = network(x * total.rsqrt(), sigma.log() / 4, Cond(labels))
    return 0.25 / total * x + 0.5 * wide * total.rsqrt() * inner


@pytest.mark.parametrize("kind", NETWORKS)
def test_names_and_counts_are_those_of_the_originals(kind):
    """As stored in published files, whose names begin with `model.`."""
    names = sorted(name for name, _ in filled(kind).named_parameters())
    assert (sum(p.numel() for p in filled(kind).parameters()), len(names)) == COUNTS[kind]
    assert names[:4] == [f"dec.{name}" for name in FIRST[kind]]


@pytest.mark.parametrize(("kind", "sigma"), GOLDEN)
def test_outputs_are_those_of_the_originals(kind, sigma):
    """To 1e-5 of the spread."""
    network = filled(kind)
    place = torch.arange(2 * 3 * SIDE * SIDE, dtype=torch.float64)
    x = (torch.sin(0.11 * place) + 0.5 * torch.cos(0.0289 * place)).reshape(2, 3, SIDE, SIDE).float() * max(sigma, 1)
    classes = NETWORKS[kind].classes
    labels = torch.tensor([1, classes - 1]) if classes else None
    y = preconditioned(kind, network, x, torch.tensor([sigma, 1.5 * sigma]), labels)
    mean, spread, elements = GOLDEN[kind, sigma]
    found = torch.stack([y.mean(), y.std(), y[0, 0, 0, 0], y[0, 2, 3, 5], y[1, 0, -1, -2], y[1, 1, 7, 7]])
    torch.testing.assert_close(found, torch.tensor([mean, spread, *elements]), rtol=0, atol=1e-5 * spread)


@pytest.mark.parametrize(
    ("network", "side", "millions"),
    [
        (SongUNet(augment=9), 32, 55.7),
        (SongUNet(augment=9, classes=10), 32, 55.7),
        (DhariwalUNet(classes=1000), 64, 296),
    ],
    ids=["CIFAR-10", "CIFAR-10 with labels", "ImageNet-64"],
)
def test_totals_are_the_published_ones(network, side, millions):
    """Counted without memory."""
    with torch.device("meta"):
        total = sum(p.numel() for p in network.make((3, side, side)).parameters())
    assert total == pytest.approx(millions * 1e6, rel=2e-3)


def test_no_label_is_no_label():
    """-1 is what the originals are told by a row of zeros: the same as a network whose label weights are 0."""
    network, x, time = filled("adm"), torch.randn(2, 3, SIDE, SIDE), torch.tensor([0.1, -0.4])
    null = network(x, time, Cond(torch.tensor([-1, -1])))
    assert not torch.equal(null, network(x, time, Cond(torch.tensor([0, 3]))))
    network.map_label.weight.zero_()
    torch.testing.assert_close(network(x, time, Cond(torch.tensor([0, 3]))), null)


@pytest.mark.parametrize("taps", [(1, 1), (1, 3, 3, 1)])
def test_resampling_keeps_what_is_constant(taps):
    """Inside the image: halved and doubled, also within the one layer that halves after its convolution."""
    x = torch.full((1, 2, 16, 16), 3.0)
    for resample, side in (("down", 8), ("up", 32)):
        out = Conv(2, 2, 0, resample, taps)(x)
        assert out.shape[-1] == side
        torch.testing.assert_close(out[..., 2:-2, 2:-2], torch.full_like(out[..., 2:-2, 2:-2], 3.0))
    both = [Conv(2, 4, 3, "down", taps, after=after) for after in (False, True)]
    both[1].load_state_dict(both[0].state_dict())
    one, other = (layer(x)[..., 2:-2, 2:-2] for layer in both)
    torch.testing.assert_close(one, other)


@pytest.mark.parametrize("coder", ["skip", "residual"])
def test_every_layout_runs(coder):
    """NCSN++'s: each coder's auxiliary layers reach the output; its parameters all matter."""
    value = SongUNet(**SMALL, embedding="fourier", encoder=coder, decoder="skip", time_features=2, taps=(1, 3, 3, 1))
    torch.manual_seed(0)
    network = value.make((3, SIDE, SIDE)).eval()
    x, time = torch.randn(2, 3, SIDE, SIDE), torch.tensor([0.3, -1.0])
    network(x, time).square().sum().backward()
    still = [name for name, p in network.named_parameters() if p.grad is None or not bool(p.grad.any())]
    assert still == []
