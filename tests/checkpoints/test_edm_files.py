"""EDM's files: read without running them, to the outputs of the originals; hostile files end in one sentence."""

import pytest
import torch

from snrkit.base.errors import ConfigError
from snrkit.checkpoints.edm import EdmModel
from snrkit.diffusion.denoiser import NetworkDenoiser
from snrkit.diffusion.prediction import Cond
from snrkit.networks.edm import SongUNet
from snrkit.sampling.grid import Karras
from tests.edm_files import ADM, SONG, arguments, iddpm_sigmas, network, preconditioned, write
from tests.networks.test_edm_networks import GOLDEN, NETWORKS, SIDE, filled

SHAPE = (3, SIDE, SIDE)
OUTER = {
    "edm": ("EDMPrecond", {"sigma_data": 0.5}),
    "vp": ("VPPrecond", {"beta_d": 19.9, "beta_min": 0.1, "M": 1000, "epsilon_t": 1e-5, "sigma_max": 152.2}),
    "adm": ("EDMPrecond", {"sigma_data": 0.5}),
}


def file_of(kind, path, protocol=4):
    """The file of a golden network."""
    labels = NETWORKS[kind].classes
    name, given = ("DhariwalUNet", ADM) if kind == "adm" else ("SongUNet", SONG)
    inner = network(name, filled(kind), arguments(given, labels))
    outer, attributes = OUTER[kind]
    return write(path / f"{kind}.pkl", preconditioned(outer, inner, SHAPE, labels, **attributes), protocol)


def opened(path):
    """(our denoiser of a file, what was described)."""
    model = EdmModel(path=path)
    found = model.describe()
    network = model.load().eval().requires_grad_(False)
    data = found.sigma_data or 1.0
    return NetworkDenoiser(network, found.process, found.target, found.precondition, data), found


@pytest.mark.parametrize("kind", NETWORKS)
@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_files_give_the_outputs_of_the_originals(kind, protocol, tmp_path):
    """D(x) of the whole way, from the file's bytes on, to 1e-5 of the spread."""
    denoise, found = opened(file_of(kind, tmp_path, protocol))
    assert found.network.shape == SHAPE
    assert found.network.classes == NETWORKS[kind].classes
    place = torch.arange(2 * 3 * SIDE * SIDE, dtype=torch.float64)
    base = (torch.sin(0.11 * place) + 0.5 * torch.cos(0.0289 * place)).reshape(2, 3, SIDE, SIDE)
    labels = torch.tensor([1, found.network.classes - 1]) if found.network.classes else None
    for sigma in (0.05, 0.7, 9.0):
        level = found.process.level(-2 * torch.tensor([sigma, 1.5 * sigma], dtype=torch.float64).log())
        y = denoise(base * max(sigma, 1), level, cond=Cond(labels)).x0
        mean, spread, elements = GOLDEN[kind, sigma]
        seen = torch.stack([y.mean(), y.std(), y[0, 0, 0, 0], y[0, 2, 3, 5], y[1, 0, -1, -2], y[1, 1, 7, 7]])
        torch.testing.assert_close(seen.float(), torch.tensor([mean, spread, *elements]), rtol=0, atol=1e-5 * spread)


def small(labels=0, outputs=3, **attributes):
    """A small SongUNet and its arguments."""
    torch.manual_seed(0)
    made = SongUNet(channels=16, multipliers=(1, 2), blocks=1, attention=(8,), classes=labels).make(
        (3, 16, 16), outputs
    )
    return made.eval().requires_grad_(False), network("SongUNet", made, arguments({**SONG, **attributes}, labels))


def test_ve_networks_are_read(tmp_path):
    """D(x) = x + sigma F(x, ln(sigma/2)), from the least sigma that the file says to the largest of EDM's samplers."""
    theirs, inner = small()
    path = write(tmp_path / "ve.pkl", preconditioned("VEPrecond", inner, (3, 16, 16), 0, sigma_min=0.02, sigma_max=100))
    denoise, found = opened(path)
    assert (found.process.sigma_min, found.process.sigma_max) == (0.02, 80)
    x = torch.randn(2, 3, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    sigma = torch.tensor([0.3, 20.0], dtype=torch.float64)
    wide = sigma[:, None, None, None]
    expected = x + wide * theirs(x.float(), (sigma / 2).log().float())
    torch.testing.assert_close(denoise(x, found.process.level(-2 * sigma.log())).x0, expected, rtol=0, atol=1e-5 * 20)


def test_iddpm_networks_are_read_with_their_table(tmp_path):
    """Half the output, the index counted from the clean end, and levels at the nearest sigma of the table."""
    theirs, inner = small(outputs=6)
    u = iddpm_sigmas()
    path = write(
        tmp_path / "iddpm.pkl", preconditioned("iDDPMPrecond", inner, (3, 16, 16), 0, M=1000, buffers={"u": u})
    )
    denoise, found = opened(path)
    grid = Karras(steps=40, sigma_min=0.01, sigma_max=80).levels(found.process)[:-1]
    ends = [float(Karras(steps=18).levels(found.process)[k].sigma) for k in (0, -2)]
    assert ends == pytest.approx([float(u[(u - 80).abs().argmin()]), float(u[-2])], rel=1e-5)
    wished = torch.tensor([80 ** (1 / 7) + k / 39 * (0.01 ** (1 / 7) - 80 ** (1 / 7)) for k in range(40)]).double() ** 7
    index = (wished[:, None] - u.double()[None]).abs().argmin(1)  # EDM's round_sigma
    sigma = torch.stack([level.sigma for level in grid])
    torch.testing.assert_close(sigma, u.double()[index], rtol=1e-9, atol=0)
    torch.testing.assert_close(found.process.time(-2 * sigma.log()), (999 - index).double(), rtol=0, atol=1e-6)
    x = torch.randn(2, 3, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    level = grid[20]
    inner_x = (x / (1 + level.sigma**2).sqrt()).float()
    expected = theirs(inner_x, (999 - index[20]).float().expand(2))[:, :3]
    torch.testing.assert_close(denoise(x, level).eps.float(), expected, rtol=0, atol=1e-5)


def test_weights_lie_in_the_file_until_they_are_used(tmp_path):
    """describe() makes no copy of them: tensors are views of the mapped file."""
    from snrkit.checkpoints.pickles import read_pickle

    content = read_pickle(file_of("edm", tmp_path))
    state = content["ema"].args[0]["state"]["_modules"]["model"].args[0]["state"]
    tensor = state["_modules"]["map_layer0"].args[0]["state"]["_parameters"]["weight"]
    content_again = read_pickle(tmp_path / "edm.pkl")
    other = content_again["ema"].args[0]["state"]["_modules"]["model"].args[0]["state"]
    again = other["_modules"]["map_layer0"].args[0]["state"]["_parameters"]["weight"]
    tensor.zero_()  # copied on writing: neither the file nor another reading changes
    assert again.abs().max() > 0
    assert torch.equal(filled("edm").map_layer0.weight, again)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda: preconditioned("StrangePrecond", small()[1], (3, 16, 16), 0), "holds a StrangePrecond"),
        (lambda: preconditioned("EDMPrecond", small()[1], (3, 16, 16), 0), "no usable sigma_data"),
        (lambda: small()[1], "holds a SongUNet, which is not known"),
        (lambda: {"weights": 1}, "holds no network in EDM's layout"),
        (lambda: preconditioned("VEPrecond", small(new_thing=3)[1], (3, 16, 16), 0), "an unknown new_thing"),
        (lambda: preconditioned("VEPrecond", small(channel_mult=[])[1], (3, 16, 16), 0), "of impossible multipliers"),
        (lambda: preconditioned("VEPrecond", small(model_channels=32)[1], (3, 16, 16), 0), "holds other weights"),
        (lambda: preconditioned("VEPrecond", small()[1], (3, -16, 16), 0), "no usable img_resolution"),
        (lambda: preconditioned("VEPrecond", small()[1], (3, 16, 16), 0, sigma_max=-1), "takes no sigma"),
    ],
)  # fmt: skip
def test_files_of_another_kind_are_said_in_one_sentence(change, said, tmp_path):
    """ConfigError of one line, whether found when describing or when loading."""
    model = EdmModel(path=write(tmp_path / "x.pkl", change()))
    with pytest.raises(ConfigError, match=said) as caught:  # noqa: PT012 - whichever comes first
        model.describe()
        model.load()
    assert "\n" not in str(caught.value)
