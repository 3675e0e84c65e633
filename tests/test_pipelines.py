"""Corrections inside pipelines of diffusers: neutral ones change no bit, others do what our own sampler does."""

import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from snrkit.base.errors import SnrkitError
from snrkit.base.wavelet import add_bands
from snrkit.diffusion.process import Flow
from snrkit.pipelines import Recording, _noised, correct, record, walk_of
from snrkit.sampling.corrections import (
    ClipX0,
    Dcw,
    DynamicThreshold,
    EpsilonScaling,
    Gain,
    NoiseAwareness,
    ScoreRescaling,
    TimeShift,
    X0Rescale,
)
from snrkit.sampling.sample import sample
from snrkit.sampling.solvers import Dpmpp2m, Euler, Heun, Unipc
from tests.checkpoints.test_diffusers import close, opened, transformer, unet

diffusers = pytest.importorskip("diffusers")
STEPS = 6
SCHEDULERS = {
    "ddpm": lambda: diffusers.DDPMScheduler(clip_sample=False),
    "ddpm-clipped": diffusers.DDPMScheduler,
    "ddim": lambda: diffusers.DDIMScheduler(clip_sample=False),
    "ddim-v": lambda: diffusers.DDIMScheduler(prediction_type="v_prediction", thresholding=True, clip_sample=False),
    "euler": lambda: diffusers.EulerDiscreteScheduler(timestep_spacing="trailing"),
    "edm": lambda: diffusers.EDMEulerScheduler(sigma_data=0.5, sigma_max=20.0),
    "dpmpp": lambda: diffusers.DPMSolverMultistepScheduler(final_sigmas_type="zero"),
    "dpmpp-flow": lambda: diffusers.DPMSolverMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, final_sigmas_type="zero"
    ),
    "dpmpp-sde": lambda: diffusers.DPMSolverMultistepScheduler(
        algorithm_type="sde-dpmsolver++", final_sigmas_type="zero"
    ),
    "deis": diffusers.DEISMultistepScheduler,
    "heun": lambda: diffusers.HeunDiscreteScheduler(timestep_spacing="trailing"),
    "pndm": lambda: diffusers.PNDMScheduler(skip_prk_steps=True),
    "unipc": lambda: diffusers.UniPCMultistepScheduler(final_sigmas_type="zero"),
    "flow": lambda: diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
}
NEUTRAL = [Dcw(), EpsilonScaling(), ScoreRescaling(), ClipX0(limit=1e6), DynamicThreshold(floor=1e6)]
STRONG = {
    "dcw": [Dcw(low=0.05, high=-0.03)],
    "epsilon_scaling": [EpsilonScaling(scale=1.05)],
    "score_rescaling": [ScoreRescaling(k=1.5)],
    "both": [EpsilonScaling(scale=0.97), Dcw(pixel=0.04)],
}


WORKING = {"flow": ["dcw", "score_rescaling"]}  # epsilon scaling is undefined at pure noise, where a flow begins


class Plain(diffusers.DiffusionPipeline):
    """The loop that unconditional pipelines have, under any scheduler."""

    def __init__(self, unet, scheduler):
        super().__init__()
        self.register_modules(unet=unet, scheduler=scheduler)

    @torch.no_grad()
    def __call__(self, count=2, steps=STEPS, dtype=torch.float32):
        self.scheduler.set_timesteps(steps)
        generator = torch.Generator().manual_seed(3)
        x = torch.randn(count, 3, 8, 8, generator=generator) * getattr(self.scheduler, "init_noise_sigma", 1.0)
        x = x.to(dtype)
        for t in self.scheduler.timesteps:
            asked = self.scheduler.scale_model_input(x, t) if hasattr(self.scheduler, "scale_model_input") else x
            out = self.unet(asked, t).sample
            x = self.scheduler.step(out, t, x, **({"generator": generator} if self.draws else {})).prev_sample
        return x

    @property
    def draws(self):
        sde = str(self.scheduler.config.get("algorithm_type")).startswith("sde")
        return sde or isinstance(self.scheduler, diffusers.DDPMScheduler)


def pipeline(name, **changes):
    return Plain(unet(**changes), SCHEDULERS[name]())


@pytest.mark.parametrize("name", SCHEDULERS)
def test_neutral_corrections_change_no_bit_and_others_leave_no_trace(name):
    """Before, with neutral ones, with strong ones, and after these are removed."""
    made = pipeline(name)
    before = made()
    with correct(made, NEUTRAL):
        assert torch.equal(made(), before)
    for kind in WORKING.get(name, STRONG):
        strong = STRONG[kind]
        hook = correct(made, strong)
        assert (made() - before).abs().max() > 1e-3
        assert torch.equal(made(), made())
        hook.remove()
        assert torch.equal(made(), before)
    assert not {"step", "multistep_uni_c_bh_update"} & vars(made.scheduler).keys()


SOLVERS = {"ddim": Euler(), "euler": Euler(), "heun": Heun(), "edm": Euler(), "dpmpp": Dpmpp2m(), "unipc": Unipc(),
           "flow": Euler()}  # fmt: skip


@pytest.mark.parametrize(("name", "kind"), [(name, kind) for name in SOLVERS for kind in WORKING.get(name, STRONG)])
@torch.no_grad()
def test_a_corrected_pipeline_walks_as_our_sampler(name, kind, tmp_path):
    """The same corrections in both, on the levels that the scheduler visits: the same image to 1e-4 of the largest."""
    scheduler = SCHEDULERS[name]()
    theirs, ours, _ = opened(tmp_path, scheduler)
    made = Plain(theirs, scheduler)
    with correct(made, STRONG[kind]):
        expected = made()
    levels = walk_of(scheduler).grid
    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(3)) * getattr(
        scheduler, "init_noise_sigma", 1.0
    )
    steps = list(sample(ours, SOLVERS[name], levels, x.double(), corrections=STRONG[kind]))
    close(steps[-1].x_next, expected, 1e-4)


class Watching:
    """A correction of state that keeps every step and changes none."""

    kind = "watching"

    def __init__(self):
        self.seen = []

    def after(self, step):
        self.seen.append(step)
        return step.x_next


@pytest.mark.parametrize("name", ["ddpm-clipped", "ddim-v", "ddim"])
def test_corrections_of_state_see_what_the_scheduler_limits(name):
    """x0 is its own pred_original_sample, clipped, thresholded or neither."""
    made, watching, kept = pipeline(name), Watching(), []
    step = made.scheduler.step

    def noting(*args, **settings):
        kept.append(step(*args, **settings))
        return kept[-1]

    made.scheduler.step = noting
    with correct(made, [watching]):
        made()
    limits = {"ddpm-clipped": 1 + 1e-6, "ddim-v": 1 + 1e-6, "ddim": math.inf}
    for own, theirs in zip(watching.seen, kept, strict=True):
        close(own.calls[-1].prediction.x0, theirs.pred_original_sample)
        assert own.calls[-1].prediction.x0.abs().max() <= limits[name]


def test_epsilon_scaling_at_pure_noise_says_so():
    """As in our sampler, a flow's first step has no image to scale against."""
    made = pipeline("flow")
    with pytest.raises(SnrkitError, match="undefined at alpha = 0"), correct(made, STRONG["epsilon_scaling"]):
        made()


def test_a_learned_variance_is_passed_on():
    """The upper half of the output reaches the scheduler as it was; the lower is corrected."""
    made = Plain(unet(out_channels=6), diffusers.DDPMScheduler(variance_type="learned_range", clip_sample=False))
    before = made()
    with correct(made, NEUTRAL):
        assert torch.equal(made(), before)
    with correct(made, [EpsilonScaling(scale=1.05)]):
        assert (made() - before).abs().max() > 1e-3


def test_half_precision_stays_half():
    """States in bfloat16 are corrected in float32 and handed on in bfloat16."""
    made = pipeline("flow")
    made.unet.to(torch.bfloat16)
    before = made(dtype=torch.bfloat16)
    with correct(made, NEUTRAL):
        assert torch.equal(made(dtype=torch.bfloat16), before)
    with correct(made, [Dcw(low=0.05)]):
        after = made(dtype=torch.bfloat16)
    assert after.dtype == torch.bfloat16
    assert (after - before).abs().max() > 1e-3


class TinyFlux(diffusers.DiffusionPipeline):
    """The loop of FluxPipeline: latents packed by twos into tokens, a transformer, a flow scheduler."""

    vae_scale_factor = 8

    def __init__(self, transformer, scheduler):
        super().__init__()
        self.register_modules(transformer=transformer, scheduler=scheduler)

    @staticmethod
    def _pack_latents(latents, batch, channels, height, width):
        parts = latents.reshape(batch, channels, height // 2, 2, width // 2, 2)
        return parts.permute(0, 2, 4, 1, 3, 5).reshape(batch, height * width // 4, channels * 4)

    @staticmethod
    def _unpack_latents(latents, height, width, factor):
        rows, columns = height // (factor * 2), width // (factor * 2)
        parts = latents.reshape(len(latents), rows, columns, latents.shape[2] // 4, 2, 2)
        return parts.permute(0, 3, 1, 4, 2, 5).reshape(len(latents), latents.shape[2] // 4, 2 * rows, 2 * columns)

    def prepare_latents(self, batch_size, num_channels_latents, height, width):
        rows, columns = 2 * (height // 16), 2 * (width // 16)
        latents = torch.randn(
            batch_size, num_channels_latents, rows, columns, generator=torch.Generator().manual_seed(1)
        )
        position = torch.cartesian_prod(torch.arange(rows // 2), torch.arange(columns // 2)).float()
        ids = torch.cat([torch.zeros(len(position), 1), position], dim=1)
        return self._pack_latents(latents, batch_size, num_channels_latents, rows, columns), ids

    @torch.no_grad()
    def __call__(self, height=64, width=96, steps=4, callback_on_step_end=None):
        x, ids = self.prepare_latents(2, 4, height, width)
        prompt = torch.randn(2, 3, 16, generator=torch.Generator().manual_seed(2))
        self.scheduler.set_timesteps(sigmas=[1 - k / steps for k in range(steps)])
        for index, t in enumerate(self.scheduler.timesteps):
            told = {"timestep": t.expand(2) / 1000, "img_ids": ids, "txt_ids": torch.zeros(3, 3)}
            out = self.transformer(x, prompt, prompt[:, 0], return_dict=False, **told)[0]
            x = self.scheduler.step(out, t, x, return_dict=False)[0]
            if callback_on_step_end is not None:  # as FluxPipeline asks it
                x = callback_on_step_end(self, index, t, {"latents": x}).pop("latents", x)
        return x


@pytest.fixture
def flux():
    torch.manual_seed(0)
    transformer = diffusers.FluxTransformer2DModel(
        patch_size=1, in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=16, pooled_projection_dim=16, axes_dims_rope=(4, 6, 6),
    ).eval()  # fmt: skip
    return TinyFlux(transformer, diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0))


def test_the_callback_of_the_page_is_the_correction_gain(flux):
    """Bit for bit, by the code that docs/pipelines.md shows."""
    page = (Path(__file__).parent.parent / "docs" / "pipelines.md").read_text()
    (code,) = re.findall(r"```python\n(def gain.*?)\n\n", page, re.DOTALL)
    shown: dict[str, Any] = {}
    exec(code, shown)
    with correct(flux, [Gain(gain=0.004)]):
        expected = flux()
    assert torch.equal(flux(callback_on_step_end=shown["gain"]), expected)
    assert not torch.equal(flux(), expected)


def test_flux_latents_are_unpacked_for_corrections_of_state(flux):
    """DCW's bands of the last step but one are those of (B, C, H, W), not of tokens; images that are not square too."""
    before, watching = flux(), Watching()
    with correct(flux, NEUTRAL):
        assert torch.equal(flux(), before)
    with correct(flux, [Dcw(low=0.1, high=-0.05), watching]):
        after = flux()
    assert watching.seen[0].x.shape == (2, 4, 8, 12)
    assert (after - before).abs().max() > 1e-3
    with correct(flux, [watching]):
        flux()
    seen = watching.seen
    plain, corrected = seen[len(seen) // 2], seen[0]
    difference = plain.x_next - plain.calls[0].prediction.x0
    factors = torch.tensor(0.1), torch.tensor(-0.05)
    expected = add_bands(plain.x_next, difference, *factors, "haar", "zero")
    torch.testing.assert_close(corrected.x_next, expected, rtol=0, atol=1e-6)
    tokens = flux._pack_latents(difference, 2, 4, 8, 12)
    wrong = add_bands(tokens[:, None], tokens[:, None], *factors, "haar", "zero")[:, 0]
    right = flux._pack_latents(expected - plain.x_next, 2, 4, 8, 12)
    assert (wrong - tokens - right).abs().max() > 1e-2
    assert torch.equal(flux(), before)
    assert "prepare_latents" not in vars(flux)


@pytest.mark.parametrize(
    ("one", "said"),
    [
        (TimeShift(), "time_shift cannot act in a pipeline: it moves the level that the network is told"),
        (X0Rescale(), "x0_rescale cannot act in a pipeline: it needs another model, or statistics of one"),
        (NoiseAwareness(weight=1.0), "asks the network again"),
    ],
)
def test_what_cannot_act_in_a_pipeline_says_so(one, said):
    """Either when it is put in or at the first step; the pipeline is whole again afterwards."""
    made = pipeline("ddim")
    before = made()
    with pytest.raises(SnrkitError, match=said), correct(made, [one]):
        made()
    assert torch.equal(made(), before)


def test_an_unknown_scheduler_is_named():
    """With those that are known, or the reason."""
    unknown = {
        diffusers.KDPM2DiscreteScheduler: "how KDPM2DiscreteScheduler steps is not known here; these are: DDPM",
        diffusers.LCMScheduler: "noises it anew at every step",
        diffusers.PNDMScheduler: "makes Runge-Kutta steps first, which are not known here; set skip_prk_steps: true",
    }
    for make, said in unknown.items():
        with pytest.raises(SnrkitError, match=said):
            correct(Plain(unet(), make()), NEUTRAL)


@torch.no_grad()
def test_pndm_is_corrected_step_by_step():
    """Its first step is two calls: the state is moved once, after the second, by the image that this one says."""
    made, gain = pipeline("pndm"), 0.05
    with correct(made, [Dcw(pixel=gain)]):
        found = made()
    scheduler = SCHEDULERS["pndm"]()
    scheduler.set_timesteps(STEPS)
    abar = scheduler.alphas_cumprod.double()
    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(3)).double()
    times, past = list(dict.fromkeys(scheduler.timesteps.tolist())), []
    for number, t in enumerate(times):
        here, there = (
            abar[t],
            abar[times[number + 1]] if number + 1 < len(times) else scheduler.final_alpha_cumprod.double(),
        )

        def stepped(state, eps, here=here, there=there):  # DDIM's
            x0 = (state - (1 - here).sqrt() * eps) / here.sqrt()
            return there.sqrt() * x0 + (1 - there).sqrt() * eps

        eps = made.unet(x.float(), t).sample.double()
        if number == 0:
            ahead = stepped(x, eps)
            second = made.unet(ahead.float(), times[1]).sample.double()
            x0 = (ahead - (1 - there).sqrt() * second) / there.sqrt()
            x_next, past = stepped(x, (eps + second) / 2), [eps]
        else:
            past = [eps, *past][:4]
            weights = {2: (3 / 2, -1 / 2), 3: (23 / 12, -16 / 12, 5 / 12), 4: (55 / 24, -59 / 24, 37 / 24, -9 / 24)}
            x0 = (x - (1 - here).sqrt() * eps) / here.sqrt()
            x_next = stepped(x, sum(w * e for w, e in zip(weights[len(past)], past, strict=True)))
        x = x_next if float(there) == 1 else x_next + gain * (x_next - x0)
    close(x, found, 1e-4)


def test_hooks_stack_and_leave_in_order():
    """A second one sees the first one's work; taking out the first while the second is in is refused."""
    made = pipeline("ddim")
    before = made()
    first, second = correct(made, [EpsilonScaling(scale=1.05)]), correct(made, [Dcw(pixel=0.04)])
    both = made()
    with pytest.raises(SnrkitError, match="put in later"):
        first.remove()
    second.remove()
    one = made()
    first.remove()
    assert torch.equal(made(), before)
    assert not torch.equal(one, both)
    assert not torch.equal(one, before)
    with pytest.raises(SnrkitError, match="removed before"):
        first.remove()


class Gaussian(torch.nn.Module):
    """The exact eps of N(0, 0.25) data on a scheduler's table."""

    def __init__(self, scheduler):
        super().__init__()
        self.abar = scheduler.alphas_cumprod

    def forward(self, x, t):
        abar = self.abar[int(t)]
        eps = (1 - abar).sqrt() / (abar * 0.25 + 1 - abar) * x
        return type("Out", (), {"sample": eps})


@pytest.mark.parametrize("loud", [1.0, 1.1])
def test_a_recording_reads_the_shift_that_is_there(loud):
    """An exact denoiser in many steps reads 0 within its interval; states 10 % too loud read 2 ln 1.1 at the start."""
    scheduler = diffusers.DDIMScheduler(clip_sample=False, timestep_spacing="trailing")
    made = Plain(unet(), scheduler)
    made.unet = Gaussian(scheduler)
    scheduler.init_noise_sigma = loud
    x0 = 0.5 * torch.randn(600, 3, 8, 8, generator=torch.Generator().manual_seed(9))
    before = made(count=300, steps=40)
    with record(made) as recording:
        assert torch.equal(made(count=300, steps=40), before)
    found = recording.shift(x0, resamples=200)
    assert found.images == 300
    assert len(found.logsnr) == 40
    assert found.logsnr == sorted(found.logsnr)
    null = sum(low <= 0 <= high for low, high in zip(found.null.low, found.null.high, strict=True))
    assert null >= 30
    first = found.log_variance_ratio.value[0]
    assert first == pytest.approx(2 * math.log(loud), abs=0.02)
    if loud == 1:
        assert max(abs(v) for v in found.log_variance_ratio.value) < 0.12  # what 40 steps of DDIM leave
    assert found.eps_rms[0] == pytest.approx(loud, abs=0.02)


def test_intervals_of_recordings_hold_what_they_promise():
    """States with no shift, at a clean level, where what is known of the data is as rough as what is recorded."""
    level, inside = Flow().level(torch.tensor(6.0, dtype=torch.float64)), [0, 0]
    generator = torch.Generator().manual_seed(3)
    for seed in range(100):
        x0 = torch.randn(300, 1, 1, 1, generator=generator) * 0.5 + 0.05 * torch.randn(
            300, 1, 4, 4, generator=generator
        )
        noise = torch.randn(100, 1, 4, 4, generator=generator)
        recording = Recording()
        recording.levels[6.0] = level
        recording.states[6.0] = [(level.alpha * x0[200:] + level.sigma * noise).float()]
        recording.squares[6.0] = [(torch.ones(100), torch.ones(100))]
        found = recording.shift(x0[:200], resamples=200, seed=seed)
        for number, curve in enumerate((found.log_variance_ratio, found.null)):
            inside[number] += curve.low[0] <= 0 <= curve.high[0]
    assert min(inside) >= 88


def test_a_recording_of_too_little_is_said():
    """Nothing, too few, and images of another shape."""
    made = pipeline("ddim")
    hook = record(made)
    with pytest.raises(SnrkitError, match="nothing was recorded"):
        hook.shift(torch.zeros(100, 3, 8, 8))
    made()
    for x0, said in (
        (torch.zeros(100, 3, 8, 8), r"2 images were recorded, and 100 given; it takes 20"),
        (torch.zeros(100, 1, 8, 8), r"recorded images are \(3, 8, 8\), and those given \(1, 8, 8\)"),
        (torch.zeros(100, 3, 8, 8, dtype=torch.uint8), r"images in \[-1, 1\] or latents"),
        ([1, 2], "x0 is a tensor of floats"),
    ):
        with pytest.raises(SnrkitError, match=said):
            hook.shift(x0)
    with pytest.raises(SnrkitError, match=r"resamples is 100; with a confidence of 0\.999 give 2000 at least"):
        hook.shift(torch.zeros(100, 3, 8, 8), resamples=100, confidence=0.999)
    hook.remove()


def test_levels_of_a_recording_have_noise_of_their_own():
    """Pure noise and the level where alpha is sigma, too, whose logsnr differ in the high bits of a float alone."""
    x0, noise = torch.zeros(1000, dtype=torch.float64), []
    for logsnr in (-math.inf, 0.0, 2.0, 0.1):
        level = Flow().level(torch.tensor(logsnr, dtype=torch.float64))
        noise.append(_noised(x0, level, logsnr) / level.sigma)
    met = torch.corrcoef(torch.stack(noise)) - torch.eye(4)
    assert float(met.abs().max()) < 0.15


def shipped(name):
    """A function that runs a pipeline as diffusers ships it, and the pipeline."""
    if name in {"ddpm", "ddim"}:
        kind = {"ddpm": diffusers.DDPMPipeline, "ddim": diffusers.DDIMPipeline}[name]
        made = kind(unet(), SCHEDULERS[name]())
        asked = {"batch_size": 2, "num_inference_steps": STEPS}
    else:
        vae = diffusers.AutoencoderKL(block_out_channels=(8,), norm_num_groups=4, sample_size=8)
        made = diffusers.DiTPipeline(transformer(layers=1, labels=1000), vae.eval(), SCHEDULERS[name]())
        made.scheduler.config.variance_type = "fixed_small"
        asked = {"class_labels": [1, 2], "num_inference_steps": STEPS, "guidance_scale": 2.0}
    made.set_progress_bar_config(disable=True)
    call = lambda: made(**asked, generator=torch.Generator().manual_seed(1), output_type="np").images  # noqa: E731
    return call, made


@pytest.mark.parametrize("name", ["ddpm", "ddim", "dpmpp", "euler", "unipc"])
def test_shipped_pipelines_take_corrections(name):
    """DDPM's and DDIM's, and DiT's under three schedulers, with guidance and a decoder."""
    call, made = shipped(name)
    before = torch.from_numpy(call())
    with correct(made, NEUTRAL):
        assert torch.equal(torch.from_numpy(call()), before)
    with correct(made, [Dcw(low=0.1)]):
        assert not torch.equal(torch.from_numpy(call()), before)
    assert torch.equal(torch.from_numpy(call()), before)


def test_pipelines_still_see_what_a_step_takes():
    """Many ask for eta and generator by the signature of the scheduler's step."""
    import inspect

    made = pipeline("ddim")
    before = inspect.signature(made.scheduler.step)
    with correct(made, NEUTRAL), record(made):
        assert inspect.signature(made.scheduler.step) == before
    assert "eta" in before.parameters


def test_a_guided_batch_is_recorded_once():
    """DiT's pipeline hands its scheduler every state twice under guidance, and once without."""
    call, made = shipped("euler")
    with record(made) as recording:
        call()
    assert {len(torch.cat(states)) for states in recording.recording.states.values()} == {2}


def test_states_that_are_no_images_are_refused():
    """Tokens that no pipeline of this kind unpacks: neither corrected nor recorded as if channels were there."""
    made = pipeline("ddim")
    made.scheduler.set_timesteps(STEPS)
    tokens, t = torch.zeros(2, 16, 8), made.scheduler.timesteps[0]
    with record(made), pytest.raises(SnrkitError, match=r"states are 2x16x8 and cannot be unpacked"):
        made.scheduler.step(tokens, t, tokens)


def test_what_is_no_list_and_no_pipeline_is_said():
    """Both at once when they are given."""
    made = pipeline("ddim")
    with pytest.raises(SnrkitError, match="corrections is a list"):
        correct(made, Dcw(low=0.01))
    with pytest.raises(SnrkitError, match="a UNet2DModel is no pipeline"):
        record(made.unet)
