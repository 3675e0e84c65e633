"""Certificates inside pipelines of diffusers: the recipe walks as our sampler does, and leaves no trace."""

import math

import diffusers
import pytest
import torch

from snrkit.base.errors import SnrkitError
from snrkit.base.records import to_json
from snrkit.base.sealed import write_json
from snrkit.base.tensors import values_checksum
from snrkit.checkpoints.diffusers import DiffusersModel
from snrkit.diffusion.denoiser import NetworkDenoiser
from snrkit.diffusion.prediction import Cond
from snrkit.experiment.certificate import Certificate, Recipe, ShiftSplit
from snrkit.experiment.certified import certified
from snrkit.experiment.fits import FitOf, StoredFit
from snrkit.experiment.same_walk import branches
from snrkit.fitting.guard import Guard
from snrkit.pipelines import walk_of
from snrkit.sampling.corrections import (
    AdaptiveProjectedGuidance,
    Autoguidance,
    CfgZeroStar,
    ClassifierFreeGuidance,
    ClipX0,
    Dcw,
    EpsilonScaling,
    FrequencyDecoupledGuidance,
    NoiseAwareness,
    NoiseAwarenessClassifier,
    PerturbedAttention,
)
from snrkit.sampling.grid import Listed
from snrkit.sampling.sample import sample
from snrkit.sampling.sampler import Sampler
from snrkit.sampling.solvers import Dpmpp2m, Euler, Fitted, Heun, Unipc
from snrkit.sampling.step import GivenFit
from snrkit.shift.bootstrap import Number
from snrkit.spectral.grid import SpectralGrid
from tests.checkpoints.test_diffusers import close, opened, unet
from tests.test_pipelines import SCHEDULERS, SOLVERS, STEPS, Plain, flux, pipeline, shipped  # noqa: F401

NUMBER = Number(0.1, 0.0, 0.2)
OF = FitOf("{}", 1, "training", "weights", 0, "checksum", None)
TABLE = Dcw(schedule={"kind": "table"})


def rows(steps, terms, size=0.02):
    """Coefficients of a fit, none alike."""
    drawn = size * torch.randn(steps, terms, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    return tuple(tuple(row) for row in drawn.tolist())


def certificate(path, network, levels, solver, corrections=(), fit=None, start="published", grid=None):
    """A certificate whose recipe is this sampler, for these weights and levels."""
    logsnr = tuple(float(level.logsnr) for level in levels[:-1])
    grid = grid or Listed(logsnr=tuple(range(len(logsnr))))  # where it is walked, `logsnr` says
    sampler = Sampler(grid=grid, solver=solver, corrections=corrections, start=start).model_dump(mode="json")
    guard = Guard(True, -0.1, -0.05, NUMBER, NUMBER, 0.0)
    stored = None if fit is None else StoredFit(OF, "fit", fit, (), 20, "0-59", 363, guard)
    record = Certificate(
        "made", "sampler", "use the recipe", "", len(logsnr), OF, values_checksum(dict(network.named_parameters())),
        logsnr, "", 0.0, "fitted", Recipe(sampler, OF, stored), guard, None,
        ShiftSplit(NUMBER, NUMBER, NUMBER, NUMBER, ""), (), (), 20, "0-59", "0-99", "", {},
    )  # fmt: skip
    write_json(path, to_json(record))
    return path


MADE = {name: (SCHEDULERS[name], SOLVERS[name]) for name in ("ddim", "euler", "edm", "flow", "dpmpp", "unipc")}
MADE |= {
    "unipc-1": (lambda: diffusers.UniPCMultistepScheduler(solver_order=1), Unipc(p=1)),
    "unipc-3": (lambda: diffusers.UniPCMultistepScheduler(solver_order=3), Unipc(p=3)),
    "unip": (lambda: diffusers.UniPCMultistepScheduler(disable_corrector=list(range(20))), Unipc(corrector=False)),
}  # fmt: skip


@pytest.mark.parametrize(("name", "bands"), [*((name, "none") for name in MADE), ("dpmpp", "haar"), ("unipc", "haar")])
@torch.no_grad()
def test_fitted_steps_in_a_pipeline_are_those_of_our_sampler(name, bands, tmp_path):
    """The same image to 1e-4 of the largest; the pipeline is as it was, bit for bit, when the certificate is out."""
    scheduler, solver = MADE[name][0](), MADE[name][1]
    theirs, ours, _ = opened(tmp_path, scheduler)
    made = Plain(theirs, scheduler)
    before, levels = made(), walk_of(scheduler).grid
    value = Fitted(base=solver, bands=bands)
    fit = rows(STEPS, value.terms)
    with certified(made, certificate(tmp_path / "certificate.json", theirs, levels, value, fit=fit)):
        expected = made()
        assert torch.equal(made(), expected)
    assert torch.equal(made(), before)
    assert not theirs._forward_hooks
    assert (expected - before).abs().max() > 1e-3
    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(3)) * getattr(
        scheduler, "init_noise_sigma", 1.0
    )
    steps = list(sample(ours, value.with_fit(GivenFit(fit)), levels, x.double()))
    close(steps[-1].x_next, expected, 1e-4)


def test_a_pipeline_of_flux_s_shape_carries_a_table(flux, tmp_path):  # noqa: F811
    """By band, on unpacked latents that are not square; without a trace when it is out."""
    before = flux()
    flux.scheduler.set_timesteps(sigmas=[1 - k / 4 for k in range(4)])
    levels = walk_of(flux.scheduler).grid
    fit = (*rows(3, 2, 0.1), (0.0, 0.0))
    path = certificate(tmp_path / "c.json", flux.transformer, levels, Euler(), (TABLE,), fit)
    with certified(flux, path):
        after = flux()
    assert (after - before).abs().max() > 1e-3
    assert torch.equal(flux(), before)


CFG = ClassifierFreeGuidance(weight=1.0)


def dit(name, scale, dtype=torch.float32):
    """A function that runs DiT's pipeline, with two labels, and the pipeline."""
    _, made = shipped(name)
    made.transformer.to(dtype)
    made.vae.to(dtype)

    def call(scale=scale):
        generator = torch.Generator().manual_seed(1)
        asked = {"num_inference_steps": STEPS, "guidance_scale": scale, "output_type": "pt"}
        return made(class_labels=[1, 2], generator=generator, **asked).images.float()

    return call, made


def of_dit(folder, made):
    """Our denoiser of a pipeline's DiT."""
    made.transformer.save_pretrained(folder / "transformer")
    made.scheduler.save_pretrained(folder / "scheduler")
    model = DiffusersModel(path=folder)
    found = model.describe()
    return NetworkDenoiser(model.load().eval(), found.process, found.target, found.precondition, 1.0)


@pytest.mark.parametrize("scale", [1.0, 2.0])
@pytest.mark.parametrize("name", ["dpmpp", "unipc"])
@torch.no_grad()
def test_dit_s_pipeline_walks_as_our_sampler(name, scale, tmp_path):
    """With guidance and without, though it says its scale nowhere: the same image to 1e-4, and no trace afterwards."""
    call, made = dit(name, scale)
    before, levels = call(), walk_of(made.scheduler).grid
    value, cfg = Fitted(base=SOLVERS[name]), () if scale == 1 else (CFG,)
    fit = rows(STEPS, value.terms)
    with certified(made, certificate(tmp_path / "c.json", made.transformer, levels, value, cfg, fit)):
        expected = call()
    assert (expected - before).abs().max() > 1e-3
    assert torch.equal(call(), before)
    x = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1)).double()
    cond = Cond(labels=torch.tensor([1, 2]))
    steps = sample(of_dit(tmp_path, made), value.with_fit(GivenFit(fit)), levels, x, corrections=cfg, cond=cond)
    latents = list(steps)[-1].x_next.float() / made.vae.config.scaling_factor
    close((made.vae.decode(latents).sample / 2 + 0.5).clamp(0, 1), expected, 1e-4)


@pytest.mark.parametrize(
    ("weight", "scale", "said"),
    [(0.0, 2.0, "scale of 1, and the pipeline has 2;"), (1.0, 1.0, "scale of 2, and the pipeline has 1;"),
     (0.5, 2.0, r"scale of 1\.5, and the pipeline has 2;"), (1.0, 2.01, r"scale of 2, and the pipeline has 2\.01;")],
)  # fmt: skip
def test_another_guidance_than_the_certified_is_refused(weight, scale, said, tmp_path):
    """DiT's pipeline, which says its scale nowhere; the next call is seen afresh, and the first state is as it was."""
    call, made = dit("dpmpp", scale)
    before, levels = call(), walk_of(made.scheduler).grid
    cfg = (ClassifierFreeGuidance(weight=weight),)
    path = certificate(tmp_path / "c.json", made.transformer, levels, Fitted(base=Dpmpp2m()), cfg, rows(STEPS, 4))
    with certified(made, path):
        with pytest.raises(SnrkitError, match=said):
            call()
        assert not torch.equal(call(1 + weight), before)
    assert torch.equal(call(), before)


def test_guidance_is_read_in_half_precision(tmp_path):
    """In bfloat16 a scale of 2 is known from one of 2.2."""
    call, made = dit("dpmpp", 2.0, torch.bfloat16)
    before, levels = call(), walk_of(made.scheduler).grid
    path = certificate(
        tmp_path / "c.json", made.transformer, levels, Fitted(base=Dpmpp2m()), (CFG,), rows(STEPS, 4, 0.1)
    )
    with certified(made, path):
        assert not torch.equal(call(), before)
        with pytest.raises(SnrkitError, match=r"scale of 2, and the pipeline has 2\.[12]"):
            call(2.2)


class Guided(Plain):
    """Guidance by labels, with two calls of the network or one, and what else pipelines do to it."""

    @torch.no_grad()
    def __call__(self, scale=2.0, calls=2, rescale=0.0, until=STEPS, perturbed=0.0):
        self.scheduler.set_timesteps(STEPS)
        x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(3))
        labels, none = torch.tensor([1, 2]), torch.tensor([4, 4])
        for index, t in enumerate(self.scheduler.timesteps):
            if calls == 2:
                c, u = self.unet(x, t, labels).sample, self.unet(x, t, none, return_dict=False)[0]
            else:
                u, c = self.unet(torch.cat([x, x]), t, torch.cat([none, labels])).sample.chunk(2)
            out = u + (scale if index < until else 1.0) * (c - u)
            out = out + rescale * (c.std() / out.std() - 1) * out
            if perturbed:
                out = out + perturbed * (c - self.unet(x, t, labels.flip(0)).sample)
            x = self.scheduler.step(out, t, x).prev_sample
        return x


def guided(tmp_path):
    """(The pipeline, our denoiser of it, a certificate for a scale of 2, its coefficients)."""
    scheduler = SCHEDULERS["ddim"]()
    theirs, ours, _ = opened(tmp_path, scheduler, unet(num_class_embeds=5), null_label=4)
    made = Guided(theirs, scheduler)
    made()
    fit = rows(STEPS, 4)
    path = certificate(tmp_path / "c.json", theirs, walk_of(scheduler).grid, Fitted(base=Euler()), (CFG,), fit)
    return made, ours, path, fit


@pytest.mark.parametrize("calls", [1, 2])
@torch.no_grad()
def test_guidance_of_either_order_is_that_of_our_sampler(calls, tmp_path):
    """Two calls, the label first, or one batch, the label last: the same image as ours to 1e-4 of the largest."""
    made, ours, path, fit = guided(tmp_path)
    with certified(made, path):
        expected = made(calls=calls)
    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(3)).double()
    value, cond = Fitted(base=Euler()).with_fit(GivenFit(fit)), Cond(labels=torch.tensor([1, 2]))
    steps = sample(ours, value, walk_of(made.scheduler).grid, x, corrections=[CFG], cond=cond)
    close(list(steps)[-1].x_next, expected, 1e-4)


@pytest.mark.parametrize(
    ("asked", "said"),
    [({"rescale": 0.5}, "nor classifier-free guidance of it"), ({"until": 3}, "scale of 2, and the pipeline has 1;"),
     ({"perturbed": 0.5}, "nor classifier-free guidance of it"), ({"scale": 3.0}, "and the pipeline has 3;"),
     ({"scale": -1.5}, "scale of 2, and the pipeline has")],
)  # fmt: skip
def test_what_pipelines_add_to_guidance_is_refused(asked, said, tmp_path):
    """A rescale, an end before the last step, a third branch, other weights."""
    made, _, path, _ = guided(tmp_path)
    before = made(**asked)
    with certified(made, path), pytest.raises(SnrkitError, match=said):
        made(**asked)
    assert torch.equal(made(**asked), before)


def test_perturbed_attention_is_no_guidance_by_labels(tmp_path):
    """It has the same equation, with another second branch; those pipelines say that they do it."""
    made, _, path, _ = guided(tmp_path)
    made.do_perturbed_attention_guidance = True
    with certified(made, path), pytest.raises(SnrkitError, match="nor classifier-free guidance"):
        made()


def test_states_twice_in_a_batch_are_not_taken_for_guided():
    """Equal halves, unguided: nothing says a weight there."""
    x = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(3)).repeat(2, 1, 1, 1)
    found = branches(x.sin(), x.sin(), x)
    assert any(one.holds(0.0) for one in found)
    assert not any(one.holds(1.0) for one in found)


def test_the_network_that_was_certified_must_be_asked(tmp_path):
    """One that is put in its place later is not seen, and refused."""
    made, _, path, _ = guided(tmp_path)
    with certified(made, path):
        made.unet = unet(num_class_embeds=5)
        with pytest.raises(SnrkitError, match="must call the network that it had"):
            made()


def test_states_that_the_network_is_not_asked_at_are_refused(tmp_path):
    """DiT's pipeline steps from the scaled input of Euler's scheduler, which is then no Euler step."""
    call, made = dit("euler", 2.0)
    before = call()
    path = certificate(
        tmp_path / "c.json",
        made.transformer,
        walk_of(made.scheduler).grid,
        Fitted(base=Euler()),
        (CFG,),
        rows(STEPS, 4),
    )
    with (
        certified(made, path),
        pytest.raises(SnrkitError, match="a DiTPipeline under a EulerDiscreteScheduler asks it at"),
    ):
        call()
    assert torch.equal(call(), before)


@pytest.mark.parametrize(
    ("corrections", "said"),
    [
        ([NoiseAwareness(weight=2.0)], "its recipe has noise_awareness, which no pipeline makes"),
        ([NoiseAwarenessClassifier(weight=0.1)], "has noise_awareness_classifier, which"),
        ([Autoguidance(weight=1.0, average="network")], "has autoguidance, which"),
        ([FrequencyDecoupledGuidance(weight=1.0)], "has fdg, which no pipeline makes"),
        ([AdaptiveProjectedGuidance(weight=1.0)], "has apg, which"),
        ([CfgZeroStar(weight=1.0)], "has cfg_zero_star, which"),
        ([PerturbedAttention(weight=1.0)], "has perturbed_attention, which"),
        ([CFG, NoiseAwareness(weight=2.0)], "has noise_awareness, which"),
        ([ClassifierFreeGuidance(weight=1.0, rescale=0.7)], "cfg with rescale, which is not plain"),
        ([ClassifierFreeGuidance(weight=1.0, t_max=0.8)], "cfg with t_max, which is not plain"),
        (
            [ClassifierFreeGuidance(weight=1.0, logsnr_min=-2.0, logsnr_max=3.0)],
            "with logsnr_min and logsnr_max, which",
        ),
        ([ClassifierFreeGuidance(weight=-3.0)], "cfg of weight -3, and pipelines have none below 0"),
        ([ClipX0(), CFG], "has clip_x0 before guidance"),
    ],
)
def test_guidance_that_no_pipeline_makes_is_refused(corrections, said, tmp_path):
    """Before anything is called; none is dropped in silence. A weight of 0 is no guidance."""
    made = pipeline("ddim")
    before, levels = made(), walk_of(made.scheduler).grid
    path = certificate(tmp_path / "c.json", made.unet, levels, Euler(), corrections)
    with pytest.raises(SnrkitError, match=said):
        certified(made, path)
    neutral = [one.model_copy(update={"weight": 0.0}) for one in corrections if hasattr(one, "weight")]
    with certified(made, certificate(tmp_path / "c.json", made.unet, levels, Euler(), neutral)):
        assert torch.equal(made(), before)


@pytest.mark.parametrize(
    ("changes", "said"),
    [({"start": "exact"}, "pipelines begin at the published one"),
     ({"grid": SpectralGrid(steps=STEPS)}, "of each image's own, and a pipeline has one for all")],
)  # fmt: skip
def test_starts_and_grids_that_pipelines_do_not_have_are_refused(changes, said, tmp_path):
    """First states with the variance of the data; levels that differ from image to image."""
    made = pipeline("ddim")
    made()
    path = certificate(tmp_path / "c.json", made.unet, walk_of(made.scheduler).grid, Euler(), **changes)
    with pytest.raises(SnrkitError, match=said):
        certified(made, path)


def test_a_scheduler_that_is_exchanged_is_noticed(tmp_path):
    """The recipe acts at the scheduler that it was put at; at another it would not act at all."""
    made = pipeline("ddim")
    made()
    path = certificate(
        tmp_path / "c.json", made.unet, walk_of(made.scheduler).grid, Euler(), [EpsilonScaling(scale=1.01)]
    )
    hook = certified(made, path)
    made.scheduler = SCHEDULERS["ddim"]()
    with pytest.raises(SnrkitError, match="that the pipeline has no more; put it in again"):
        made()
    hook.remove()
    made()


DPM, UNIPC = diffusers.DPMSolverMultistepScheduler, diffusers.UniPCMultistepScheduler


@pytest.mark.parametrize(
    ("scheduler", "settings", "solver", "said"),
    [
        (DPM, {"algorithm_type": "sde-dpmsolver++"}, Dpmpp2m(), "with algorithm_type 'dpmsolver\\+\\+', and this"),
        (DPM, {"algorithm_type": "dpmsolver", "final_sigmas_type": "sigma_min"}, Dpmpp2m(), "one's is 'dpmsolver'"),
        (DPM, {"solver_order": 1}, Dpmpp2m(), "with solver_order 2, and this one's is 1"),
        (DPM, {"solver_order": 3}, Fitted(base=Dpmpp2m()), "with solver_order 2, and this one's is 3"),
        (DPM, {"solver_type": "heun"}, Dpmpp2m(), "one's is 'heun'"),
        (DPM, {"thresholding": True}, Dpmpp2m(), "with thresholding False"),
        (UNIPC, {"solver_order": 3}, Unipc(), "with solver_order 2, and this one's is 3"),
        (UNIPC, {}, Unipc(p=3), "with solver_order 3, and this one's is 2"),
        (UNIPC, {"solver_type": "bh1"}, Unipc(), "with solver_type 'bh2', and this one's is 'bh1'"),
        (UNIPC, {"predict_x0": False}, Unipc(), "with predict_x0 True"),
        (UNIPC, {"lower_order_final": False}, Unipc(), "with lower_order_final True"),
        (UNIPC, {"solver_order": 3}, Unipc(p=3, lower_order_final=False), "UniPCMultistepScheduler does not make"),
        (UNIPC, {"disable_corrector": [0]}, Unipc(), r"with disable_corrector \[\], and this one's is \[0\]"),
        (UNIPC, {}, Unipc(corrector=False), r"with disable_corrector \[0, 1, 2, 3, 4\], and this one's is \[\]"),
        (UNIPC, {"solver_p": diffusers.DDIMScheduler()}, Unipc(), "with solver_p None"),
        (UNIPC, {"thresholding": True}, Unipc(), "with thresholding False"),
        (diffusers.DDIMScheduler, {}, Euler(), "with clip_sample False, and this one's is True"),
        (diffusers.DDIMScheduler, {"clip_sample": False, "thresholding": True}, Euler(), "with thresholding False"),
        (diffusers.FlowMatchEulerDiscreteScheduler, {"stochastic_sampling": True}, Euler(), "one's is True"),
    ],
)  # fmt: skip
def test_a_scheduler_configured_to_another_solver_is_refused(scheduler, settings, solver, said, tmp_path):
    """In one sentence that names the setting, before anything is called."""
    made = Plain(unet(), scheduler(**settings))
    made.scheduler.set_timesteps(STEPS)
    fit = rows(STEPS, solver.terms) if isinstance(solver, Fitted) else None
    path = certificate(tmp_path / "c.json", made.unet, walk_of(made.scheduler).grid, solver, fit=fit)
    with pytest.raises(SnrkitError, match=said):
        certified(made, path)
    assert not made.unet._forward_hooks


class Given(Plain):
    """The loop with arguments of the scheduler's step."""

    @torch.no_grad()
    def __call__(self, begin=0, **given):
        self.scheduler.set_timesteps(STEPS)
        x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(3)) * self.scheduler.init_noise_sigma
        for t in self.scheduler.timesteps[begin:]:
            out = self.unet(self.scheduler.scale_model_input(x, t), t).sample
            x = self.scheduler.step(out, t, x, generator=torch.Generator().manual_seed(1), **given).prev_sample
        return x


@pytest.mark.parametrize(
    ("name", "plain", "given", "said"),
    [
        ("ddim", {"eta": 0.0}, {"eta": 1.0}, "gives it eta = 1, which makes another"),
        (
            "ddim",
            {"use_clipped_model_output": None},
            {"use_clipped_model_output": True},
            "use_clipped_model_output = 1",
        ),
        ("ddim", {}, {"begin": 2}, "goes to step 3 of 6 after step 0"),
        (
            "euler",
            {"s_churn": 0.0, "s_tmax": math.inf, "s_noise": 1.0},
            {"s_churn": 2.0},
            "gives it s_churn = 2, which",
        ),
        ("edm", {"s_churn": 0.0}, {"s_churn": 2.0}, "gives it s_churn = 2, which"),
        ("edm", {}, {"pred_original_sample": torch.zeros(2, 3, 8, 8)}, "pred_original_sample = a Tensor"),
    ],
)
def test_a_step_with_noise_or_other_arguments_is_refused(name, plain, given, said, tmp_path):
    """What a pipeline gives the scheduler's step must leave it as it is; neutral values do."""
    made = Given(unet(), SCHEDULERS[name]())
    before = made(**plain)
    levels = walk_of(made.scheduler).grid
    with certified(made, certificate(tmp_path / "c.json", made.unet, levels, Euler(), [EpsilonScaling(scale=1.01)])):
        assert not torch.equal(made(**plain), before)
        with pytest.raises(SnrkitError, match=said):
            made(**given)
    assert torch.equal(made(**plain), before)


def test_ddim_s_own_pipeline_is_refused_with_eta(tmp_path):
    """As diffusers ships it, which hands eta on; without, it carries a recipe."""
    call, made = shipped("ddim")
    before = torch.from_numpy(call())
    path = certificate(
        tmp_path / "c.json", made.unet, walk_of(made.scheduler).grid, Fitted(base=Euler()), fit=rows(STEPS, 4)
    )
    with certified(made, path):
        assert not torch.equal(torch.from_numpy(call()), before)
        with pytest.raises(SnrkitError, match="gives it eta = 1"):
            made(batch_size=2, num_inference_steps=STEPS, eta=1.0)


@pytest.mark.parametrize(
    ("scheduler", "solver", "said"),
    [
        (lambda: diffusers.DDIMScheduler(clip_sample=False, set_alpha_to_one=False), Euler(), "at the clean image"),
        (
            lambda: DPM(final_sigmas_type="sigma_min"),
            Dpmpp2m(),
            "at the clean image, and this scheduler's end at 9.21 nats",
        ),
        (
            lambda: diffusers.DDIMScheduler(clip_sample=False, timestep_spacing="trailing"),
            Euler(),
            "at the clean image",
        ),
    ],
)
def test_a_walk_that_ends_elsewhere_is_refused(scheduler, solver, said, tmp_path):
    """A certificate's levels end at the clean image."""
    made = Plain(unet(), scheduler())
    before = made()
    path = certificate(tmp_path / "c.json", made.unet, walk_of(made.scheduler).grid, solver, [Dcw(low=0.05)])
    with certified(made, path), pytest.raises(SnrkitError, match=said):
        made()
    assert torch.equal(made(), before)


def test_steps_that_do_not_end_where_the_next_begins_are_refused(tmp_path):
    """DDIM's go down by a fixed number of time steps, whatever the spacing of those that it visits."""
    made = Plain(unet(), diffusers.DDIMScheduler(clip_sample=False, timestep_spacing="linspace"))
    made.scheduler.set_timesteps(STEPS)
    levels = walk_of(made.scheduler).grid
    path = certificate(tmp_path / "c.json", made.unet, levels, Euler(), [Dcw(low=0.05)])
    with certified(made, path), pytest.raises(SnrkitError, match="set its timestep_spacing to leading"):
        made()


@pytest.mark.parametrize(
    ("solver", "said"),
    [(Heun(), "has the solver heun, which DDIMScheduler does not make"), (Fitted(), "has the solver ipndm"),
     (Fitted(base=Unipc()), "has the solver unipc"), (Dpmpp2m(), "has the solver dpmpp_2m")],
)  # fmt: skip
def test_a_solver_that_the_scheduler_is_not_is_refused(solver, said, tmp_path):
    """In one sentence, before anything is called."""
    made = pipeline("ddim")
    made()
    fit = rows(STEPS, solver.terms) if isinstance(solver, Fitted) else None
    path = certificate(tmp_path / "c.json", made.unet, walk_of(made.scheduler).grid, solver, fit=fit)
    with pytest.raises(SnrkitError, match=said):
        certified(made, path)


def test_other_weights_and_levels_are_refused(tmp_path):
    """Weights when it is put in, levels when the pipeline is called; the pipeline is as it was."""
    made = pipeline("ddim")
    before, levels = made(), walk_of(made.scheduler).grid
    path = certificate(tmp_path / "c.json", made.unet, levels, Euler(), (EpsilonScaling(scale=1.01),))
    with certified(made, path), pytest.raises(SnrkitError, match=r"for 6 steps .* walks 5"):
        made(steps=5)
    with certified(made, path):
        assert not torch.equal(made(), before)
    assert torch.equal(made(), before)
    with torch.no_grad():
        next(made.unet.parameters()).mul_(1.001)
    with pytest.raises(SnrkitError, match="of other weights"):
        certified(made, path)


def test_values_have_one_checksum_whatever_they_are_called():
    """Names, order and a format that holds the same numbers change nothing; a number or a shape does."""
    a, b = torch.arange(6.0), torch.ones(2, 2)
    known = values_checksum({"a": a, "b": b})
    assert values_checksum({"x": b, "y": a.to(torch.bfloat16)}) == known
    assert values_checksum({"a": a.reshape(2, 3), "b": b}) != known
    assert values_checksum({"a": a + 1e-6, "b": b}) != known
    assert values_checksum({"a": a}) != known
