"""Models that diffusers saves: read as it reads them, and sampled step for step as its schedulers do."""

import json
import math
import os

import pytest
import torch

from snrkit.base.errors import ConfigError
from snrkit.checkpoints.diffusers import DiffusersModel
from snrkit.diffusion.denoiser import NetworkDenoiser
from snrkit.diffusion.prediction import Cond
from snrkit.sampling.corrections import ClipX0
from snrkit.sampling.grid import Leading, Trailing, UniformTime
from snrkit.sampling.sample import sample
from snrkit.sampling.solvers import Ancestral, Dpmpp2m, Euler, Heun, Unipc

diffusers = pytest.importorskip("diffusers")
INDICES = [0, 1, 2, 250, 500, 750, 997, 998, 999]


def unet(**changes):
    """A small network with random weights, its output as large as its input."""
    torch.manual_seed(0)
    settings = {
        "sample_size": 8, "in_channels": 3, "out_channels": 3, "layers_per_block": 1, "norm_num_groups": 8,
        "block_out_channels": (16, 16), "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    }  # fmt: skip
    return diffusers.UNet2DModel(**{**settings, **changes}).eval()


def opened(folder, scheduler, network=None, pipeline=diffusers.DDPMPipeline, **settings):
    """(their network, our denoiser of the folder that their pipeline saves)."""
    theirs = unet() if network is None else network
    pipeline(theirs, scheduler).save_pretrained(folder)
    model = DiffusersModel(path=folder, **settings)
    found = model.describe()
    data = found.sigma_data or 1.0
    return theirs, NetworkDenoiser(model.load().eval(), found.process, found.target, found.precondition, data), found


def close(ours, theirs, relative=1e-5):
    assert (ours.double() - theirs.double()).abs().max() <= relative * theirs.abs().max()


TABLES = {
    "linear": {},
    "scaled": {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
    "cosine": {"beta_schedule": "squaredcos_cap_v2"},
    "zero_snr": {"beta_schedule": "scaled_linear", "rescale_betas_zero_snr": True},
    "listed": {"trained_betas": [1e-4 + 2e-5 * k for k in range(1000)]},
}


@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize("predicted", ["epsilon", "sample", "v_prediction"])
@torch.no_grad()
def test_beliefs_are_those_of_model_and_scheduler(predicted, table, tmp_path):
    """x0 and eps of the model's output by the scheduler's algebra, to 1e-5 of the largest, all over the table."""
    scheduler = diffusers.DDIMScheduler(prediction_type=predicted, clip_sample=False, **TABLES[table])
    theirs, ours, found = opened(tmp_path, scheduler)
    x = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    scheduler.set_timesteps(1000)
    for index in INDICES if table != "zero_snr" or predicted != "epsilon" else INDICES[:-1]:
        told = theirs(x, torch.tensor(index)).sample
        step = scheduler.step(told, index, x)
        level = found.process.level(found.process.logsnr(torch.tensor(float(index))))
        belief = ours(x.double(), level)
        close(belief.x0, step.pred_original_sample)
        abar = scheduler.alphas_cumprod[index].double()
        close(abar.sqrt() * belief.x0 + (1 - abar).sqrt() * belief.eps, x)


@pytest.mark.parametrize("scaling", [diffusers.DDIMScheduler, diffusers.EulerDiscreteScheduler])
@pytest.mark.parametrize("table", TABLES)
def test_the_network_is_told_every_index_exactly(table, scaling, tmp_path):
    """time(logsnr(k)) == k, and the table is the scheduler's own to float64."""
    if scaling is diffusers.EulerDiscreteScheduler and table == "zero_snr":
        pytest.skip("its last sigma is made up, 4096")
    scheduler = scaling(prediction_type="sample", **TABLES[table])
    _, _, found = opened(tmp_path, scheduler)
    index = torch.arange(1000, dtype=torch.float64)
    assert torch.equal(found.process.time(found.process.logsnr(index)), index)
    abar = scheduler.alphas_cumprod.double()
    torch.testing.assert_close(torch.sigmoid(found.process.table()), abar, rtol=1e-10, atol=1e-13)


SPACINGS = {"leading": Leading, "trailing": Trailing, "linspace": UniformTime}
KINDS = {make().kind: make for make in SPACINGS.values()}


@pytest.mark.parametrize("spacing", [*SPACINGS, None])
@pytest.mark.parametrize("make", [diffusers.DDIMScheduler, diffusers.EulerDiscreteScheduler], ids=["ddim", "euler"])
def test_the_grid_of_a_folder_is_its_scheduler_s(make, spacing, tmp_path):
    """The levels that its pipeline visits, step by step."""
    given = {} if spacing is None else {"timestep_spacing": spacing, "steps_offset": 1 if spacing == "leading" else 0}
    scheduler = make(**given)
    _, _, found = opened(tmp_path / "model", scheduler)
    said = DiffusersModel(path=tmp_path / "model").spacing()
    levels = KINDS[said.pop("kind")](steps=7, **said).levels(found.process)
    scheduler.set_timesteps(7)
    times = scheduler.timesteps.double().round()
    expected = found.process.logsnr(times)
    torch.testing.assert_close(torch.stack([level.logsnr for level in levels[:-1]]), expected, rtol=1e-6, atol=1e-6)


SOLVERS = {
    "ddim": (Euler(), diffusers.DDIMScheduler, {"clip_sample": False}),
    "ddim-eta": (Ancestral(), diffusers.DDIMScheduler, {"clip_sample": False}),
    "euler": (Euler(), diffusers.EulerDiscreteScheduler, {}),
    "euler-ancestral": (Ancestral(), diffusers.EulerAncestralDiscreteScheduler, {}),
    "heun": (Heun(), diffusers.HeunDiscreteScheduler, {}),
    "dpmpp_2m": (Dpmpp2m(), diffusers.DPMSolverMultistepScheduler, {"final_sigmas_type": "zero"}),
    "unipc": (Unipc(), diffusers.UniPCMultistepScheduler, {"final_sigmas_type": "zero"}),
}


def walked(scheduler, network, x, steps, **settings):
    """All states of their loop."""
    scheduler.set_timesteps(steps)
    states = []
    for t in scheduler.timesteps:
        out = network(scheduler.scale_model_input(x, t), t).sample
        x = scheduler.step(out, t, x, **settings).prev_sample
        states.append(x)
    return states


@pytest.mark.parametrize("predicted", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("name", SOLVERS)
@torch.no_grad()
def test_solvers_walk_as_its_schedulers_do(name, spacing, predicted, tmp_path):
    """Every state of ten steps, to 1e-4 of the largest, on the levels that the scheduler visits."""
    if (name, spacing) in {("ddim", "linspace"), ("ddim-eta", "linspace")}:
        pytest.skip("steps to levels off its own grid: test_ddim_under_linspace_leaves_its_own_grid")
    solver, make, settings = SOLVERS[name]
    scheduler = make(prediction_type=predicted, timestep_spacing=spacing, **settings)
    theirs, ours, found = opened(tmp_path, scheduler)
    levels = visited(scheduler, found.process)
    generator = torch.Generator().manual_seed(1)
    start = torch.randn(2, 3, 8, 8, generator=generator) * float(scheduler.init_noise_sigma)
    noise = torch.randn(10, 2, 3, 8, 8, generator=generator)
    queue = [iter(noise), iter(noise)]
    extra = {}
    if name == "ddim-eta":
        extra = {"eta": 1.0}
    expected = with_noise(scheduler, queue[0], lambda: walked(scheduler, theirs, start, 10, **extra))
    expected = expected[1::2] + expected[-1:] if name == "heun" else expected
    made = [step.x_next for step in sample(ours, solver, levels, start.double(), noise=lambda x: next(queue[1]))]
    assert len(made) == len(expected)
    for one, other in zip(made, expected, strict=True):
        close(one, other, 1e-4)


def visited(scheduler, process, steps=10):
    """The levels of its time steps, rising, then clean."""
    scheduler.set_timesteps(steps)
    logsnr = process.logsnr(scheduler.timesteps.double().unique().flip(0))
    return tuple(process.level(v) for v in (*logsnr.unbind(), torch.tensor(torch.inf, dtype=torch.float64)))


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("make", [diffusers.DDIMScheduler, diffusers.EulerDiscreteScheduler])
@pytest.mark.parametrize("steps", [7, 10, 50])
def test_grids_lay_out_the_levels_that_its_schedulers_visit(spacing, make, steps, tmp_path):
    """Index by index, for all three spacings; the offset too."""
    scheduler = make(timestep_spacing=spacing, steps_offset=1 if spacing == "leading" else 0)
    found = DiffusersModel(path=saved(tmp_path, scheduler)).describe()
    grid = Leading(steps=steps, offset=1) if spacing == "leading" else SPACINGS[spacing](steps=steps)
    ours = torch.stack([level.logsnr for level in grid.levels(found.process)])
    theirs = torch.stack([level.logsnr for level in visited(scheduler, found.process, steps)])
    index, other = found.process.time(ours[:-1]), found.process.time(theirs[:-1])
    if spacing == "linspace" and make is diffusers.EulerDiscreteScheduler:
        assert (index - other).abs().max() <= 0.5  # it interpolates between entries, where our grids snap
    else:
        assert torch.equal(index, other)


def saved(folder, scheduler):
    """The folder of a pipeline with this scheduler."""
    diffusers.DDPMPipeline(unet(), scheduler).save_pretrained(folder)
    return folder


def test_ddim_under_linspace_leaves_its_own_grid():
    """It steps down by floor(T/n) from each time step, which under linspace is not where the next one stands."""
    scheduler = diffusers.DDIMScheduler(timestep_spacing="linspace", clip_sample=False)
    scheduler.set_timesteps(10)
    t, following = scheduler.timesteps[:2].tolist()
    x, eps = torch.randn(2, 1, 4, 4, generator=torch.Generator().manual_seed(0)).double()
    made = scheduler.step(eps, t, x).prev_sample
    x0 = (x - (1 - scheduler.alphas_cumprod[t]).sqrt() * eps) / scheduler.alphas_cumprod[t].sqrt()
    reached = {k: abar.sqrt() * x0 + (1 - abar).sqrt() * eps for k, abar in enumerate(scheduler.alphas_cumprod)}
    assert min(reached, key=lambda k: float((reached[k] - made).abs().max())) == t - 100 != following


def with_noise(scheduler, queue, walk):
    """`walk` with the scheduler's noise taken from `queue`."""
    import sys

    module = sys.modules[type(scheduler).__module__]
    kept = getattr(module, "randn_tensor", None)
    module.randn_tensor = lambda shape, **_: next(queue)
    try:
        return walk()
    finally:
        module.randn_tensor = kept


@pytest.mark.parametrize("predicted", ["epsilon", "v_prediction"])
@torch.no_grad()
def test_edm_schedulers_are_read(predicted, tmp_path):
    """The denoised image of EDMEulerScheduler at every level of its own, and its walk."""
    scheduler = diffusers.EDMEulerScheduler(prediction_type=predicted, sigma_data=0.4, sigma_max=30.0)
    theirs, ours, found = opened(tmp_path, scheduler)
    assert found.sigma_data == 0.4
    scheduler.set_timesteps(8)
    assert found.process.bounds[0] == pytest.approx(-2 * torch.tensor(30.0).log().item())
    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1)) * 30
    logsnr = -2 * scheduler.sigmas[:-1].double().log()
    levels = tuple(found.process.level(v) for v in (*logsnr, torch.tensor(torch.inf, dtype=torch.float64)))
    expected = walked(scheduler, theirs, x, 8)
    for step, other in zip(sample(ours, Euler(), levels, x.double(), noise=None), expected, strict=True):
        close(step.x_next, other, 1e-4)


@pytest.mark.parametrize("shift", [1.0, 3.0])
@torch.no_grad()
def test_flow_schedulers_are_read(shift, tmp_path):
    """FlowMatchEuler from even t, as pipelines call it: the same states, and a grid of ours lays out its levels."""
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=shift)
    theirs, ours, found = opened(tmp_path, scheduler)
    levels = UniformTime(steps=10).levels(found.process)
    scheduler.set_timesteps(sigmas=[1 - k / 10 for k in range(10)])
    torch.testing.assert_close(
        torch.stack([level.sigma for level in levels]), scheduler.sigmas.double(), rtol=1e-6, atol=0
    )
    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    made = sample(ours, Euler(), levels, x.double(), noise=None)
    for step, t in zip(made, scheduler.timesteps, strict=True):
        x = scheduler.step(theirs(x, t).sample, t, x).prev_sample
        close(step.x_next, x, 1e-4)


def transformer(side=8, layers=2, labels=10):
    """A small DiT with a learned variance, as published ones have; its last label means none."""
    torch.manual_seed(0)
    made = diffusers.DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=8, in_channels=4, out_channels=8, num_layers=layers, sample_size=side,
        patch_size=2, num_embeds_ada_norm=labels,
    ).eval()  # fmt: skip
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return made


@torch.no_grad()
def test_a_dit_is_read_with_its_labels(tmp_path):
    """eps of a label and of none; the learned variance is left out, and said."""
    theirs, scheduler = transformer(), diffusers.DDIMScheduler(clip_sample=False)
    theirs.save_pretrained(tmp_path / "transformer")
    scheduler.save_pretrained(tmp_path / "scheduler")
    model = DiffusersModel(path=tmp_path)
    found = model.describe()
    assert (found.network.shape, found.network.classes, found.network.null_label) == ((4, 8, 8), 10, True)
    assert any("learned variance" in note for note in found.network.notes)
    ours = NetworkDenoiser(model.load().eval(), found.process, found.target, found.precondition, 1.0)
    x = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    level = found.process.level(found.process.logsnr(torch.tensor(500.0)))
    for labels, rows in (([3, 0, -1], [3, 0, 10]), (None, [10, 10, 10])):
        told = theirs(x, torch.tensor([500] * 3), torch.tensor(rows)).sample[:, :4]
        cond = None if labels is None else Cond(torch.tensor(labels))
        close(ours(x.double(), level, cond=cond).eps, told)


@torch.no_grad()
def test_the_last_label_of_a_unet_may_mean_none(tmp_path):
    """With null_label 10, ten labels are left, and -1 is the eleventh."""
    network, scheduler = unet(num_class_embeds=11), diffusers.DDIMScheduler()
    theirs, ours, found = opened(tmp_path, scheduler, network, null_label=10)
    assert (found.network.classes, found.network.null_label) == (10, True)
    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    level = found.process.level(found.process.logsnr(torch.tensor(500.0)))
    told = theirs(x, torch.tensor([500, 500]), torch.tensor([4, 10])).sample
    close(ours(x.double(), level, cond=Cond(torch.tensor([4, -1]))).eps, told)


def spoilt(folder, **changes):
    """The folder of a pipeline, with changes to its scheduler's configuration."""
    path = saved(folder, diffusers.DDIMScheduler()) / "scheduler/scheduler_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    return folder


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda f: f / "absent", "does not exist; a relative path in a YAML is"),
        (lambda f: f, "has no config.json"),
        (lambda f: spoilt(f, _class_name="os"), "os is no scheduler"),
        (lambda f: spoilt(f, _class_name="ScoreSdeVeScheduler"), "is not known here"),
        (lambda f: spoilt(f, prediction_type="score"), "prediction_type score is not known"),
        (lambda f: spoilt(f, beta_schedule="wavy"), "is refused by DDIMScheduler"),
        (lambda f: spoilt(f, num_train_timesteps=10**9), "asks for more than 100,000"),
        (lambda f: spoilt(f, num_train_timesteps=-5), "is refused by DDIMScheduler"),
        (lambda f: spoilt(f, _class_name="EDMEulerScheduler", sigma_min=-1.0), "is refused by EDMEuler"),
        (lambda f: spoilt(f, _class_name="EulerDiscreteScheduler", timestep_type="continuous"), "continuous, whose"),
        (lambda f: spoilt(f, _class_name="DDIM\nScheduler"), "names no class"),
        (lambda f: spoilt(f, trained_betas=[float("nan")] * 1000), "is not valid JSON"),
        (lambda f: spoilt(f, trained_betas=[float("inf")] * 1000), "is refused by DDIMScheduler"),
        (lambda f: spoilt(f, trained_betas=[2.0] * 1000), "is refused by DDIMScheduler"),
        (lambda f: spoilt(f, trained_betas=[]), "is refused by DDIMScheduler"),
        (lambda f: (saved(f, diffusers.DDIMScheduler()) / "unet/config.json").write_text("[]") and f, "names no class"),
        (lambda f: (saved(f, diffusers.DDIMScheduler()) / "unet/config.json").write_text("{") and f, "not valid JSON"),
        (
            lambda f: (saved(f, diffusers.DDIMScheduler()) / "unet/config.json").write_text(
                '{"_class_name": "UNet3DModel", "in_channels": 3, "sample_size": 8}'
            )
            and f,
            "a UNet3DModel cannot be read",
        ),
        (
            lambda f: (saved(f, diffusers.DDIMScheduler()) / "unet/config.json").write_text(
                '{"_class_name": "AutoencoderKL", "in_channels": 3, "sample_size": 8}'
            )
            and f,
            "an AutoencoderKL cannot be read",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_said_in_one_sentence(spoil, said, tmp_path):
    """ConfigError of one line."""
    with pytest.raises(ConfigError, match=said) as caught:
        DiffusersModel(path=spoil(tmp_path)).describe()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "place", ["unet/config.json", "scheduler/scheduler_config.json", "unet/diffusion_pytorch_model.safetensors"]
)
def test_nothing_is_waited_for(place, tmp_path):
    """A named pipe in the place of any file of a folder."""
    path = saved(tmp_path, diffusers.DDIMScheduler()) / place
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(ConfigError) as caught:
        DiffusersModel(path=tmp_path).describe()
    assert "\n" not in str(caught.value)


def test_weights_that_do_not_fit_are_said_in_one_sentence(tmp_path):
    """A damaged file, and none."""
    folder = saved(tmp_path, diffusers.DDIMScheduler())
    weights = folder / "unet/diffusion_pytorch_model.safetensors"
    for content in (weights.read_bytes()[:100], None):
        weights.unlink()
        if content:
            weights.write_bytes(content)
        with pytest.raises(ConfigError, match=r"bytes of weights|has no weights, such as") as caught:
            DiffusersModel(path=folder).load()
        assert "\n" not in str(caught.value)
        weights.touch()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"block_out_channels": [2**13, 2**13]}, "bytes of weights, for a network of"),
        ({"layers_per_block": 10**9}, "no network of a possible size"),
        ({"in_channels": 2**40}, "no network of a possible size"),
        ({"block_out_channels": [15, 16]}, "describes no network"),
    ],
)
def test_a_network_larger_than_its_file_is_refused_before_it_takes_memory(changes, said, tmp_path):
    """By the configuration alone."""
    path = saved(tmp_path, diffusers.DDIMScheduler()) / "unet/config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    with pytest.raises(ConfigError, match=said) as caught:
        DiffusersModel(path=tmp_path).load()
    assert "\n" not in str(caught.value)


def test_a_missing_package_is_named_with_its_command(tmp_path, monkeypatch):
    """One sentence, as for every other mistake."""
    import sys

    folder = saved(tmp_path, diffusers.DDIMScheduler())
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(ConfigError, match=r"diffusers is not installed; pip install 'snrkit\[diffusers\]'"):
        DiffusersModel(path=folder).describe()


def test_published_names_of_a_dit_are_read(tmp_path):
    """Older folders call it a Transformer2DModel of norm ada_norm_zero."""
    transformer().save_pretrained(tmp_path / "transformer")
    diffusers.DDIMScheduler().save_pretrained(tmp_path / "scheduler")
    path = tmp_path / "transformer/config.json"
    older = {"_class_name": "Transformer2DModel", "norm_type": "ada_norm_zero"}
    path.write_text(json.dumps({**json.loads(path.read_text()), **older}))
    assert DiffusersModel(path=tmp_path).describe().network.classes == 10


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: diffusers.DDPMScheduler(clip_sample_range=1.5), "{kind: clip_x0, limit: 1.5}"),
        (lambda: diffusers.DDIMScheduler(clip_sample_range=1.5), "{kind: clip_x0, limit: 1.5, eps: kept}"),
        (lambda: diffusers.DDPMScheduler(thresholding=True), "{kind: clip_x0, limit: 1.0}"),
        (lambda: diffusers.DDPMScheduler(thresholding=True, sample_max_value=3.0), "but for its largest threshold"),
        (lambda: diffusers.DDIMScheduler(clip_sample=False), None),
    ],
)
def test_limits_of_the_pipeline_are_named_as_corrections(make, said, tmp_path):
    """As the scheduler itself has them: thresholds end at 1 unless it says more."""
    found = [note for note in DiffusersModel(path=saved(tmp_path, make())).describe().network.notes if "limits" in note]
    assert (said in found[0]) if said else not found


@torch.no_grad()
def test_ddim_limits_x0_and_keeps_eps(tmp_path):
    """Every state of ten steps under the correction that the note names; moving eps along would be another sampler."""
    scheduler = diffusers.DDIMScheduler(timestep_spacing="trailing", clip_sample_range=0.3)
    theirs, ours, found = opened(tmp_path, scheduler)
    levels = visited(scheduler, found.process)
    start = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    expected = walked(scheduler, theirs, start, 10)
    for eps in ("kept", "moved"):
        clip = ClipX0(limit=0.3, eps=eps)
        made = [step.x_next for step in sample(ours, Euler(), levels, start.double(), corrections=[clip])]
        worst = max(float((a - b).abs().max()) for a, b in zip(made[:-1], expected[:-1], strict=True))
        assert (worst < 1e-4) == (eps == "kept")


def test_a_shift_that_no_pipeline_makes_is_not_taken(tmp_path):
    """Multistep schedulers shift by the size of the image only where a pipeline hands them mu; Sana's does not."""
    scheduler = diffusers.DPMSolverMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0, use_dynamic_shifting=True
    )
    found = DiffusersModel(path=saved(tmp_path, scheduler)).describe()
    assert float(found.process.logsnr_shift) == pytest.approx(-2 * math.log(3))


@pytest.mark.parametrize("name", ["LCMScheduler", "TCDScheduler"])
def test_distilled_networks_are_not_taken_for_ordinary_ones(name, tmp_path):
    """Their schedulers have the same table, and read the network through scales of their own."""
    folder = saved(tmp_path, getattr(diffusers, name)())
    with pytest.raises(ConfigError, match=f"how a network under {name} was trained is not known here"):
        DiffusersModel(path=folder).describe()
