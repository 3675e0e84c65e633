"""Published layouts of DiT and SiT: outputs equal to diffusers' own DiT, and SiT's time and sign."""

from argparse import Namespace

import pytest
import torch

from snrkit.base.errors import ConfigError
from snrkit.checkpoints.transformers import DitModel, SitModel
from snrkit.diffusion.denoiser import NetworkDenoiser
from snrkit.diffusion.prediction import Cond
from snrkit.networks.dit import Dit, sine_positions
from snrkit.sampling.grid import UniformTime
from snrkit.sampling.sample import sample
from snrkit.sampling.solvers import Euler

HEADS, DIM, DEPTH, CLASSES, SIDE = 2, 16, 2, 10, 8


def published(theirs):
    """The weights of a DiTTransformer2DModel under the names that DiT's files have."""
    state = theirs.state_dict()
    first = "transformer_blocks.0.norm1.emb."
    renamed = {
        "x_embedder.proj": "pos_embed.proj", "t_embedder.mlp.0": f"{first}timestep_embedder.linear_1",
        "t_embedder.mlp.2": f"{first}timestep_embedder.linear_2", "final_layer.adaLN_modulation.1": "proj_out_1",
        "final_layer.linear": "proj_out_2",
    }  # fmt: skip
    for k in range(DEPTH):
        ours, other = f"blocks.{k}.", f"transformer_blocks.{k}."
        renamed |= {
            f"{ours}adaLN_modulation.1": f"{other}norm1.linear", f"{ours}attn.proj": f"{other}attn1.to_out.0",
            f"{ours}mlp.fc1": f"{other}ff.net.0.proj", f"{ours}mlp.fc2": f"{other}ff.net.2",
        }  # fmt: skip
    out = {f"{new}.{part}": state[f"{old}.{part}"] for new, old in renamed.items() for part in ("weight", "bias")}
    for k in range(DEPTH):
        parts = [f"transformer_blocks.{k}.attn1.to_{letter}" for letter in "qkv"]
        for part in ("weight", "bias"):
            out[f"blocks.{k}.attn.qkv.{part}"] = torch.cat([state[f"{p}.{part}"] for p in parts])
    out["y_embedder.embedding_table.weight"] = state[f"{first}class_embedder.embedding_table.weight"]
    out["pos_embed"] = theirs.pos_embed.pos_embed.reshape(1, -1, DIM)
    return out


@pytest.fixture(scope="module")
def theirs():
    """A small DiT of diffusers whose blocks share one embedding, as DiT's do, at the published frequencies.

    diffusers' own frequencies run to 1/10000 itself (downscale_freq_shift 1), where those of DiT stop short of it.
    """
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    made = diffusers.DiTTransformer2DModel(
        num_attention_heads=HEADS, attention_head_dim=DIM // HEADS, in_channels=4, out_channels=8, num_layers=DEPTH,
        sample_size=SIDE, patch_size=2, num_embeds_ada_norm=CLASSES,
    ).eval()  # fmt: skip
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    shared = made.transformer_blocks[0].norm1.emb.state_dict()
    for block in made.transformer_blocks:
        block.norm1.emb.load_state_dict(shared)
        block.norm1.emb.time_proj.downscale_freq_shift = 0
    return made.requires_grad_(False)


def opened(model):
    """(our denoiser, what was described)."""
    found = model.describe()
    network = model.load().eval().requires_grad_(False)
    learned = network.tells_spread = found.network.learned_variance
    parts = found.process, found.target, found.precondition
    return NetworkDenoiser(network, *parts, 1.0, learned_variance=learned), found


@pytest.mark.parametrize("entry", [None, "ema", "weights"])
@pytest.mark.parametrize("zipped", [True, False])
def test_a_dit_file_gives_what_diffusers_gives(theirs, entry, zipped, tmp_path):
    """eps of labels and of none, to 1e-5 of the largest, whether the file is the weights or holds them."""
    weights = published(theirs)
    content = weights if entry is None else {entry: weights, "args": Namespace(model="DiT"), "opt": {"state": {}}}
    torch.save(content, tmp_path / "dit.pt", _use_new_zipfile_serialization=zipped)
    asked = entry if entry == "weights" else None
    denoise, found = opened(DitModel(path=tmp_path / "dit.pt", entry=asked, heads=HEADS))
    assert (found.network.shape, found.network.classes, found.network.null_label) == ((4, SIDE, SIDE), CLASSES, True)
    x = torch.randn(3, 4, SIDE, SIDE, generator=torch.Generator().manual_seed(1))
    for index in (0, 400, 999):
        level = found.process.level(found.process.logsnr(torch.tensor(float(index))))
        told = theirs(x, torch.full((3,), index), torch.tensor([3, 0, CLASSES])).sample
        made = denoise(x.double(), level, cond=Cond(torch.tensor([3, 0, -1])))
        assert (torch.cat([made.eps, made.spread], 1) - told).abs().max() <= 1e-5 * told.abs().max()
    assert found.network.learned_variance


def test_a_sit_walks_from_noise_to_image_as_published(theirs, tmp_path):
    """x += dt v(x, t) from t = 0 to 1, v the first half of the output: Euler on the even grid of a flow process."""
    torch.save(published(theirs), tmp_path / "sit.pt")
    model = SitModel(path=tmp_path / "sit.pt", heads=HEADS)
    denoise, found = opened(model)
    velocity = Dit(patch=2, dim=DIM, depth=DEPTH, heads=HEADS, classes=CLASSES).make((4, SIDE, SIDE), 8).eval()
    velocity.load_state_dict({k: v for k, v in published(theirs).items() if k != "pos_embed"}, strict=False)
    assert torch.allclose(sine_positions(4, 4, DIM).float()[None], published(theirs)["pos_embed"], atol=1e-6)
    x = torch.randn(2, 4, SIDE, SIDE, generator=torch.Generator().manual_seed(1))
    labels, steps = torch.tensor([3, 5]), 8
    levels = UniformTime(steps=steps).levels(found.process)
    made = list(sample(denoise, Euler(), levels, x.double(), noise=None, cond=Cond(labels)))
    for k, step in enumerate(made):
        with torch.no_grad():
            x = x + velocity(x, torch.full((2,), k / steps), Cond(labels))[:, :4] / steps
        assert (step.x_next - x).abs().max() <= 1e-5 * x.abs().max()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda w: w.pop("pos_embed"), "does not hold the weights of a DiT"),
        (lambda w: w.pop("blocks.1.mlp.fc2.bias"), "blocks.1.mlp.fc2.bias is missing"),
        (lambda w: w.update(extra=torch.zeros(2)), "extra is unknown"),
        (lambda w: w.update({"blocks.0.attn.proj.bias": torch.zeros(3)}), r"blocks.0.attn.proj.bias is \(3,\)"),
        (lambda w: w.update(note="text"), "no mapping of names to tensors"),
    ],
)
def test_files_of_another_kind_are_said_in_one_sentence(theirs, change, said, tmp_path):
    """ConfigError of one line."""
    weights = published(theirs)
    change(weights)
    torch.save(weights, tmp_path / "dit.pt")
    model = DitModel(path=tmp_path / "dit.pt", heads=HEADS)
    with pytest.raises(ConfigError, match=said) as caught:  # noqa: PT012 - whichever comes first
        model.describe()
        model.load()
    assert "\n" not in str(caught.value)


def test_heads_that_no_published_size_has_are_asked_for(theirs, tmp_path):
    """The weights do not say them."""
    torch.save(published(theirs), tmp_path / "dit.pt")
    with pytest.raises(ConfigError, match="no published DiT is 16 wide"):
        DitModel(path=tmp_path / "dit.pt").describe()


@pytest.mark.parametrize(("dim", "depth", "heads", "millions"), [(1152, 28, 16, 675), (384, 12, 6, 33)])
def test_sizes_are_the_published_ones(dim, depth, heads, millions):
    """DiT-XL/2 and DiT-S/2 at 256 pixels, with 1000 labels and a learned variance (Peebles & Xie 2023, table 1)."""
    with torch.device("meta"):
        network = Dit(patch=2, dim=dim, depth=depth, heads=heads, classes=1000).make((4, 32, 32), 8)
    count = sum(p.numel() for name, p in network.named_parameters() if name != "extras.null_time")
    assert round(count / 1e6) == millions
