"""Transformers of SD3's, FLUX's and Sana's kind: walked as diffusers walks them, told the texts of a file."""

import pytest
import torch
from safetensors.torch import save_file

from snrkit.base.errors import ConfigError
from snrkit.checkpoints.diffusers import DiffusersModel
from snrkit.diffusion.denoiser import NetworkDenoiser
from snrkit.diffusion.prediction import Cond
from snrkit.sampling.grid import UniformTime
from snrkit.sampling.sample import sample
from snrkit.sampling.solvers import Euler
from tests.checkpoints.test_diffusers import close
from tests.test_pipelines import TinyFlux

diffusers = pytest.importorskip("diffusers")
STEPS, LENGTH, WIDE = 4, 3, 16
MAKE = {
    "sd3": lambda: diffusers.SD3Transformer2DModel(
        sample_size=4, patch_size=1, in_channels=4, num_layers=1, attention_head_dim=8, num_attention_heads=2,
        joint_attention_dim=WIDE, caption_projection_dim=16, pooled_projection_dim=WIDE, out_channels=4,
        pos_embed_max_size=8,
    ),
    "flux": lambda: diffusers.FluxTransformer2DModel(
        patch_size=1, in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=WIDE, pooled_projection_dim=WIDE, axes_dims_rope=(4, 6, 6), guidance_embeds=True,
    ),
    "sana": lambda: diffusers.SanaTransformer2DModel(
        in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=8, num_layers=1,
        num_cross_attention_heads=2, cross_attention_head_dim=8, cross_attention_dim=16, caption_channels=WIDE,
        sample_size=4, timestep_scale=0.5,
    ),
}  # fmt: skip
SHAPES = {"sd3": (4, 4, 4), "flux": (4, 4, 6), "sana": (4, 4, 4)}


def texts(kind, count=3):
    """Embeddings of some prompts and of none."""
    generator = torch.Generator().manual_seed(5)
    made = {"prompt_embeds": torch.randn(count, LENGTH, WIDE, generator=generator)}
    if kind == "sana":
        made["prompt_attention_mask"] = torch.tensor([[1, 1, 1], [1, 1, 0], [1, 0, 0]])[:count]
    else:
        made["pooled_prompt_embeds"] = torch.randn(count, WIDE, generator=generator)
    return made


def folder_of(kind, path, scheduler=None):
    """A folder with a small random transformer and its scheduler; returns the transformer."""
    torch.manual_seed(0)
    theirs = MAKE[kind]().eval().requires_grad_(False)
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    theirs.save_pretrained(path / "transformer")
    (scheduler or diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)).save_pretrained(path / "scheduler")
    return theirs


def told(kind, theirs, x, t, given, guidance):
    """What the pipeline's own call says, at the scheduler's time t."""
    time = t.expand(len(x)).float()
    if kind == "sd3":
        return theirs(x, given["prompt_embeds"], given["pooled_prompt_embeds"], time).sample
    if kind == "sana":
        mask = given["prompt_attention_mask"]
        return theirs(x, given["prompt_embeds"], encoder_attention_mask=mask, timestep=time * 0.5).sample
    height, width = x.shape[2:]
    place = torch.cartesian_prod(torch.arange(height // 2), torch.arange(width // 2)).float()
    ids = torch.cat([torch.zeros(len(place), 1), place], dim=1)
    tokens = TinyFlux._pack_latents(x, len(x), 4, height, width)
    out = theirs(
        tokens, given["prompt_embeds"], given["pooled_prompt_embeds"], time / 1000, ids, torch.zeros(LENGTH, 3),
        torch.full((len(x),), guidance),
    ).sample  # fmt: skip
    return TinyFlux._unpack_latents(out, 8 * height, 8 * width, 8)


@pytest.mark.parametrize("kind", MAKE)
@torch.no_grad()
def test_states_are_those_of_diffusers(kind, tmp_path):
    """Every state from even t, each image with the prompt of its label, or with none; FLUX's images are not square."""
    theirs, prompts = folder_of(kind, tmp_path), texts(kind)
    negative = {f"negative_{key}": value[2:] for key, value in texts(kind).items()}
    save_file({**prompts, **negative}, tmp_path / "texts.safetensors")
    sides = {"sides": (4, 6), "guidance": 2.0} if kind == "flux" else {}
    model = DiffusersModel(path=tmp_path, prompts=tmp_path / "texts.safetensors", **sides)
    found = model.describe()
    assert (found.network.shape, found.network.classes, found.network.null_label) == (SHAPES[kind], 3, True)
    ours = NetworkDenoiser(model.load().eval(), found.process, found.target, found.precondition, 1.0)
    rows = torch.tensor([1, 0, 2])
    given = {key: value[rows] for key, value in prompts.items()}
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler.from_pretrained(tmp_path / "scheduler")
    scheduler.set_timesteps(sigmas=[1 - k / STEPS for k in range(STEPS)])
    x = torch.randn(3, *SHAPES[kind], generator=torch.Generator().manual_seed(1))
    levels = UniformTime(steps=STEPS).levels(found.process)
    made = sample(ours, Euler(), levels, x.double(), cond=Cond(torch.tensor([1, 0, -1])))
    for step, t in zip(made, scheduler.timesteps, strict=True):
        x = scheduler.step(told(kind, theirs, x, t, given, 2.0), t, x).prev_sample
        close(step.x_next, x, 1e-4)


@torch.no_grad()
def test_one_prompt_is_told_always_and_is_no_label(tmp_path):
    """Sana under its own multistep scheduler's table of the flow."""
    scheduler = diffusers.DPMSolverMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
    )
    theirs = folder_of("sana", tmp_path, scheduler)
    save_file(texts("sana", 1), tmp_path / "texts.safetensors")
    model = DiffusersModel(path=tmp_path, prompts=tmp_path / "texts.safetensors")
    found = model.describe()
    assert (found.network.classes, found.network.null_label) == (0, False)
    assert float(found.process.logsnr_shift) == pytest.approx(-2 * torch.tensor(3.0).log().item())
    ours = NetworkDenoiser(model.load().eval(), found.process, found.target, found.precondition, 1.0)
    x = torch.randn(2, 4, 4, 4, generator=torch.Generator().manual_seed(1))
    level = found.process.level(found.process.logsnr(torch.tensor(0.4)))
    given = {key: value.expand(2, *value.shape[1:]) for key, value in texts("sana", 1).items()}
    flow = told("sana", theirs, x, torch.tensor(400.0), given, 0.0)
    belief = ours(x.double(), level)
    close(belief.eps - belief.x0, flow)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, r"a SD3Transformer2DModel is told texts; give a safetensors file with prompt_embeds and pooled"),
        ({}, "does not hold prompt_embeds and pooled_prompt_embeds of equally many prompts"),
        ({"prompt_embeds": torch.zeros(2, 3, 16), "pooled_prompt_embeds": torch.zeros(3, 16)}, "of equally many"),
        ("text", "is no safetensors file"),
        (
            {"prompt_embeds": torch.zeros(2, 3, 12), "pooled_prompt_embeds": torch.zeros(2, 16)},
            "prompt_embeds of .* is 12 wide, and the model takes 16",
        ),
    ],
)
def test_texts_that_do_not_fit_are_said_in_one_sentence(content, said, tmp_path):
    """ConfigError of one line."""
    folder_of("sd3", tmp_path)
    path = tmp_path / "texts.safetensors"
    if isinstance(content, dict):
        save_file({"other": torch.zeros(1), **content}, path)
    elif content is not None:
        path.write_text(content)
    with pytest.raises(ConfigError, match=said) as caught:
        DiffusersModel(path=tmp_path, prompts=path if content is not None else None).describe()
    assert "\n" not in str(caught.value)


def test_sides_that_nobody_knows_are_asked_for(tmp_path):
    """FLUX's configuration does not say them."""
    folder_of("flux", tmp_path)
    save_file(texts("flux"), tmp_path / "texts.safetensors")
    with pytest.raises(ConfigError, match=r"config\.json does not say the size"):
        DiffusersModel(path=tmp_path, prompts=tmp_path / "texts.safetensors").describe()


def test_sides_that_cannot_be_packed_are_refused(tmp_path):
    """FLUX's tokens are latents by twos."""
    folder_of("flux", tmp_path)
    save_file(texts("flux"), tmp_path / "texts.safetensors")
    with pytest.raises(ConfigError, match="takes latents by twos, and they are 5x4"):
        DiffusersModel(path=tmp_path, prompts=tmp_path / "texts.safetensors", sides=(5, 4)).describe()


def test_one_prompt_with_a_negative_is_a_label_that_guidance_can_drop(tmp_path):
    """So that classifier-free guidance of one prompt can be asked for."""
    folder_of("sana", tmp_path)
    one = texts("sana", 1)
    save_file(
        {**one, **{f"negative_{key}": value.clone() for key, value in one.items()}}, tmp_path / "texts.safetensors"
    )
    found = DiffusersModel(path=tmp_path, prompts=tmp_path / "texts.safetensors").describe()
    assert (found.network.classes, found.network.null_label) == (1, True)


@pytest.mark.parametrize("shape", ["exponential", "linear"])
def test_levels_follow_a_shift_by_the_size_of_the_image(shape, tmp_path):
    """As FLUX's pipeline sets its scheduler: mu of the number of tokens, and t shifted by it.

    mu is on the line through (256 tokens, 0.5) and (4096, 1.15), so 0.5 + 0.65/30 at 384.
    """
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(
        use_dynamic_shifting=True, base_shift=0.5, max_shift=1.15, time_shift_type=shape
    )
    folder_of("flux", tmp_path, scheduler)
    save_file(texts("flux"), tmp_path / "texts.safetensors")
    model = DiffusersModel(path=tmp_path, prompts=tmp_path / "texts.safetensors", sides=(32, 48))
    scheduler.set_timesteps(sigmas=[1 - k / STEPS for k in range(STEPS)], mu=0.5 + 0.65 / 30)
    levels = UniformTime(steps=STEPS).levels(model.describe().process)
    found = torch.stack([level.sigma for level in levels])
    torch.testing.assert_close(found, scheduler.sigmas.double(), rtol=0, atol=1e-6)
