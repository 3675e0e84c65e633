"""ADM's files: our network equals diffusers' own by renaming, and the flags mean what they meant."""

from dataclasses import replace

import pytest
import torch

from snrkit.base.distributed import World
from snrkit.base.errors import ConfigError
from snrkit.checkpoints.adm import AdmModel
from snrkit.commands.sample import run_sampling
from snrkit.diffusion.denoiser import NetworkDenoiser
from snrkit.diffusion.prediction import Cond
from snrkit.diffusion.process import Ddpm
from snrkit.experiment.experiment import parse_experiment
from snrkit.networks.adm import AdmUNet
from snrkit.sampling.grid import Leading, UniformTime
from tests.small import load_images

diffusers = pytest.importorskip("diffusers")
SIDE = 8
FLAGS = {
    "plain": {"num_heads": 4, "use_scale_shift_norm": False, "rescale_timesteps": True, "noise_schedule": "cosine",
              "diffusion_steps": 4000, "learn_sigma": True},
    "adm": {"num_head_channels": 16, "resblock_updown": True, "use_new_attention_order": True, "class_cond": True,
            "learn_sigma": True},
    "old-order": {"num_head_channels": 32, "resblock_updown": True},
}  # fmt: skip
SHAPED = {
    "image_size": SIDE,
    "num_channels": 32,
    "num_res_blocks": 1,
    "attention_resolutions": (4,),
    "channel_mult": (1, 2),
}


def theirs(kind):
    """diffusers' network of these flags, its weights of a size that shows."""
    flags = FLAGS[kind]
    torch.manual_seed(0)
    resnet = flags.get("resblock_updown", False)
    first = ("ResnetDownsampleBlock2D", "ResnetUpsampleBlock2D") if resnet else ("DownBlock2D", "UpBlock2D")
    made = diffusers.UNet2DModel(
        sample_size=SIDE, in_channels=3, out_channels=6 if flags.get("learn_sigma") else 3, layers_per_block=1,
        block_out_channels=(32, 64), down_block_types=(first[0], "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", first[1]), norm_num_groups=32, norm_eps=1e-5, downsample_padding=1,
        attn_norm_num_groups=32,
        attention_head_dim=flags.get("num_head_channels", 64 // flags.get("num_heads", 4)),
        resnet_time_scale_shift="scale_shift" if flags.get("use_scale_shift_norm", True) else "default",
        downsample_type="resnet" if resnet else "conv", upsample_type="resnet" if resnet else "conv",
        num_class_embeds=5 if flags.get("class_cond") else None,
    ).eval()  # fmt: skip
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return made.requires_grad_(False)


def block(name, other):
    """Renaming of a residual block."""
    parts = {"in_layers.0": "norm1", "in_layers.2": "conv1", "emb_layers.1": "time_emb_proj", "out_layers.0": "norm2",
             "out_layers.3": "conv2", "skip_connection": "conv_shortcut"}  # fmt: skip
    return {f"{name}.{new}": f"{other}.{old}" for new, old in parts.items()}


def renaming(resnet):
    """Our names of layers and theirs."""

    def change(name, layer, other):
        return block(name, other) if resnet else {f"{name}.{layer}": f"{other}.conv"}

    return {
        "time_embed.0": "time_embedding.linear_1", "time_embed.2": "time_embedding.linear_2",
        "input_blocks.0.0": "conv_in", "out.0": "conv_norm_out", "out.2": "conv_out", "label_emb": "class_embedding",
        **block("input_blocks.1.0", "down_blocks.0.resnets.0"),
        **change("input_blocks.2.0", "op", "down_blocks.0.downsamplers.0"),
        **block("input_blocks.3.0", "down_blocks.1.resnets.0"),
        **block("middle_block.0", "mid_block.resnets.0"), **block("middle_block.2", "mid_block.resnets.1"),
        **block("output_blocks.0.0", "up_blocks.0.resnets.0"), **block("output_blocks.1.0", "up_blocks.0.resnets.1"),
        **change("output_blocks.1.2", "conv", "up_blocks.0.upsamplers.0"),
        **block("output_blocks.2.0", "up_blocks.1.resnets.0"), **block("output_blocks.3.0", "up_blocks.1.resnets.1"),
    }  # fmt: skip


ATTENTION = {
    "input_blocks.3.1": "down_blocks.1.attentions.0", "middle_block.1": "mid_block.attentions.0",
    "output_blocks.0.1": "up_blocks.0.attentions.0", "output_blocks.1.1": "up_blocks.0.attentions.1",
}  # fmt: skip


def published(kind, network):
    """The weights under the originals' names."""
    state, flags = network.state_dict(), FLAGS[kind]
    names = renaming(flags.get("resblock_updown", False))
    out = {}
    for new, old in names.items():
        for part in ("weight", "bias"):
            if f"{old}.{part}" in state:
                out[f"{new}.{part}"] = state[f"{old}.{part}"]
    wide, heads = 64, 64 // flags["num_head_channels"] if "num_head_channels" in flags else flags["num_heads"]
    for new, old in ATTENTION.items():
        for part in ("weight", "bias"):
            qkv = torch.stack([state[f"{old}.to_{letter}.{part}"] for letter in "qkv"])
            if not flags.get("use_new_attention_order"):
                qkv = qkv.unflatten(1, (heads, wide // heads)).transpose(0, 1)
            rows = qkv.reshape(3 * wide, *qkv.shape[3 if not flags.get("use_new_attention_order") else 2 :])
            out[f"{new}.qkv.{part}"] = rows[..., None] if part == "weight" else rows
            out[f"{new}.norm.{part}"] = state[f"{old}.group_norm.{part}"]
            last = state[f"{old}.to_out.0.{part}"]
            out[f"{new}.proj_out.{part}"] = last[..., None] if part == "weight" else last
    return out


def saved(kind, network, folder):
    """The file of a network and what describes it."""
    torch.save(published(kind, network), folder / "adm.pt")
    return AdmModel(path=folder / "adm.pt", **SHAPED, **FLAGS[kind])


@pytest.mark.parametrize("kind", FLAGS)
def test_outputs_are_those_of_diffusers(kind, tmp_path):
    """Our network with the file's weights, to 1e-5 of the largest output, and its learned variance."""
    network = theirs(kind)
    model = saved(kind, network, tmp_path)
    found = model.describe()
    denoise = NetworkDenoiser(model.load().eval(), found.process, found.target, found.precondition, 1.0)
    denoise.network.tells_spread = found.network.learned_variance
    denoise = replace(denoise, learned_variance=found.network.learned_variance)
    x = torch.randn(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))
    labels = torch.tensor([4, 1]) if FLAGS[kind].get("class_cond") else None
    factor = 1000 / found.process.steps if FLAGS[kind].get("rescale_timesteps") else 1
    for index in (0, 300, 999):
        level = found.process.level(found.process.logsnr(torch.tensor(float(index))))
        with torch.no_grad():
            told = network(x, torch.full((2,), index * factor), labels).sample.split(3, dim=1)
            made = denoise(x.double(), level, cond=Cond(labels))
        assert (made.eps - told[0]).abs().max() <= 1e-5 * told[0].abs().max()
        assert (made.spread is not None) == found.network.learned_variance == (len(told) == 2)
        if made.spread is not None:
            assert (made.spread - told[1]).abs().max() <= 1e-5 * told[1].abs().max()


def test_flags_may_be_written_as_commands_write_them(tmp_path):
    """Lists between commas, "" for a default, flags of training alone; the network is the same."""
    network = theirs("adm")
    model = saved("adm", network, tmp_path)
    written = AdmModel.model_validate({
        **model.model_dump(), "attention_resolutions": "4", "channel_mult": "1,2", "timestep_respacing": "",
        "use_fp16": True, "dropout": 0.1, "num_heads_upsample": -1,
    })  # fmt: skip
    given = {key: getattr(written, key) for key in SHAPED}
    assert given == {**SHAPED, "channel_mult": (1.0, 2.0)}
    assert AdmModel(path=tmp_path, image_size=64, channel_mult="").channel_mult is None


def test_what_the_files_do_not_say_is_asked():
    """Both repositories leave rescale_timesteps out, and mean different things by it; at 1000 steps it is no matter."""
    with pytest.raises(ConfigError, match="rescale_timesteps: give it, which the file does not say"):
        AdmModel(path="x", diffusion_steps=4000)
    assert AdmModel(path="x").rescale_timesteps is None


def test_respacing_is_a_grid():
    """ddim25 and 250 visit the indices that the refusal says are those of `leading` and of `uniform_time`."""
    with pytest.raises(ConfigError, match=r"drop it, and give samplers a grid: .kind: leading, steps: 25."):
        AdmModel(path="x", timestep_respacing="ddim25")
    with pytest.raises(ConfigError, match="as many heads"):
        AdmModel(path="x", num_heads_upsample=8)
    process = Ddpm()
    for grid, visited in (
        (Leading(steps=25), range(0, 1000, 40)),
        (UniformTime(steps=250), [round(k * 999 / 249) for k in range(250)]),
    ):
        found = torch.stack([level.logsnr for level in grid.levels(process)[:-1]]).flip(0)
        torch.testing.assert_close(found, process.logsnr(torch.tensor(list(visited), dtype=torch.float64)))


def test_tables_are_those_of_the_originals(tmp_path):
    """Linear betas are scaled to the number of steps; cosine ones are capped at 0.999."""
    network = theirs("old-order")
    model = saved("old-order", network, tmp_path)
    assert any("{kind: clip_x0}" in note for note in model.describe().network.notes)
    for steps in (1000, 4000):
        table = model.model_copy(update={"diffusion_steps": steps}).describe().process.betas.betas(steps)
        assert float(table[0]) == pytest.approx(0.1 / steps)
        assert float(table[-1]) == pytest.approx(20 / steps)
    cosine = model.model_copy(update={"noise_schedule": "cosine"}).describe().process.betas.betas(1000)
    assert float(cosine[-1]) == pytest.approx(0.999)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"class_cond": True}, "has no labels; set class_cond: false"),
        ({"learn_sigma": True}, r"out.2.weight is \(3, 32, 3, 3\) and not \(6, 32, 3, 3\)"),
        ({"num_res_blocks": 2}, "is unknown"),
        ({"attention_resolutions": (8, 4)}, "is missing"),
        ({"num_channels": 33}, r"holds other weights than the flags say \(num_channels (\(33\) )?must be"),
    ],
)
def test_flags_that_do_not_fit_are_said_in_one_sentence(flags, said, tmp_path):
    """ConfigError of one line."""
    model = saved("old-order", theirs("old-order"), tmp_path).model_copy(update=flags)
    with pytest.raises(ConfigError, match=said) as caught:  # noqa: PT012 - whichever comes first
        model.describe()
        model.load()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "side", "outputs", "millions"),
    [
        # ImageNet-64 and LSUN of guided-diffusion's table, ImageNet-64 and CIFAR-10 of improved-diffusion's
        ({"channels": 192, "multipliers": (1, 2, 3, 4), "blocks": 3, "attention": (32, 16, 8), "head_channels": 64,
          "classes": 1000, "resample_blocks": True, "new_order": True}, 64, 6, 296),
        ({"channels": 256, "multipliers": (1, 1, 2, 2, 4, 4), "attention": (32, 16, 8), "head_channels": 64,
          "classes": 1000, "resample_blocks": True}, 256, 6, 554),
        ({"channels": 128, "multipliers": (1, 2, 2, 2), "blocks": 3, "attention": (16, 8)}, 32, 6, 53),
    ],
)  # fmt: skip
def test_sizes_are_the_published_ones(settings, side, outputs, millions):
    """Parameters on the meta device."""
    with torch.device("meta"):
        network = AdmUNet(**settings).make((3, side, side), outputs)
    assert round(sum(p.numel() for p in network.parameters()) / 1e6) == millions


def test_a_learned_variance_is_sampled_with_from_a_file(tmp_path):
    """By an experiment as users write it, at one evaluation a step; a file that learned none is refused by its keys."""
    model = saved("adm", theirs("adm"), tmp_path)
    grid, draws = {"kind": "uniform_time", "steps": 4}, {"kind": "ancestral"}
    content = {
        "name": "adm",
        "data": {"kind": "mixture", "shape": [3, SIDE, SIDE], "count": 60, "components": 5, "holdout": 0.4},
        "model": model.model_dump(mode="json"),
        "samplers": {
            "learned": {"grid": grid, "solver": {**draws, "variance": "learned"}},
            "small": {"grid": grid, "solver": draws},
        },
        "sample": {"seeds": "0-3", "batch": 4}, "metrics": {"features": "pixels", "ranges": 1},
    }  # fmt: skip
    world = World(0, 1, torch.device("cpu"))
    experiment = parse_experiment(content, "adm")
    assert {experiment.model.parts.cost(sampler) for sampler in experiment.samplers.values()} == {4}
    run = run_sampling(experiment, tmp_path / "runs", world, quiet=True)
    learned, small = (load_images(run.samples(name), range(4)) for name in ("learned", "small"))
    assert learned.shape == (4, 3, SIDE, SIDE)
    assert not torch.equal(learned, small)
    without = saved("old-order", theirs("old-order"), tmp_path).model_dump(mode="json")
    with pytest.raises(ConfigError, match=r"samplers\.learned\.solver \(ancestral\): variance learned needs"):
        parse_experiment({**content, "model": without}, "adm")
