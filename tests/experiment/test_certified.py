"""Certificates inside pipelines of diffusers: the recipe walks as our sampler does, and leaves no trace."""

import pytest
import torch

from snrkit.base.errors import SnrkitError
from snrkit.base.records import to_json
from snrkit.base.sealed import write_json
from snrkit.base.tensors import values_checksum
from snrkit.experiment.certificate import Certificate, Recipe, ShiftSplit
from snrkit.experiment.certified import certified
from snrkit.experiment.fits import FitOf, StoredFit
from snrkit.fitting.guard import Guard
from snrkit.pipelines import walk_of
from snrkit.sampling.corrections import ClassifierFreeGuidance, Dcw, EpsilonScaling
from snrkit.sampling.grid import Listed
from snrkit.sampling.sample import sample
from snrkit.sampling.sampler import Sampler
from snrkit.sampling.solvers import Dpmpp2m, Euler, Fitted, Heun, Unipc
from snrkit.sampling.step import GivenFit
from snrkit.shift.bootstrap import Number
from tests.checkpoints.test_diffusers import close, opened
from tests.test_pipelines import SCHEDULERS, SOLVERS, STEPS, Plain, flux, pipeline, shipped  # noqa: F401

NUMBER = Number(0.1, 0.0, 0.2)
OF = FitOf("{}", 1, "training", "weights", 0, "checksum", None)
TABLE = Dcw(schedule={"kind": "table"})


def rows(steps, terms, size=0.02):
    """Coefficients of a fit, none alike."""
    drawn = size * torch.randn(steps, terms, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    return tuple(tuple(row) for row in drawn.tolist())


def certificate(path, network, levels, solver, corrections=(), fit=None):
    """A certificate whose recipe is this sampler, for these weights and levels."""
    logsnr = tuple(float(level.logsnr) for level in levels[:-1])
    grid = Listed(logsnr=tuple(range(len(logsnr))))  # where it is walked, `logsnr` says
    sampler = Sampler(grid=grid, solver=solver, corrections=corrections).model_dump(mode="json")
    guard = Guard(True, -0.1, -0.05, NUMBER, NUMBER, 0.0)
    stored = None if fit is None else StoredFit(OF, "fit", fit, (), 20, "0-59", 363, guard)
    record = Certificate(
        "made", "sampler", "use the recipe", "", len(logsnr), OF, values_checksum(dict(network.named_parameters())),
        logsnr, "", 0.0, "fitted", Recipe(sampler, OF, stored), guard, None,
        ShiftSplit(NUMBER, NUMBER, NUMBER, NUMBER, ""), (), (), 20, "0-59", "0-99", "", {},
    )  # fmt: skip
    write_json(path, to_json(record))
    return path


@pytest.mark.parametrize("bands", ["none", "haar"])
@pytest.mark.parametrize("name", ["ddim", "euler", "flow", "dpmpp", "unipc"])
@torch.no_grad()
def test_fitted_steps_in_a_pipeline_are_those_of_our_sampler(name, bands, tmp_path):
    """The same image to 1e-4 of the largest; the pipeline is as it was, bit for bit, when the certificate is out."""
    scheduler = SCHEDULERS[name]()
    theirs, ours, _ = opened(tmp_path, scheduler)
    made = Plain(theirs, scheduler)
    before, levels = made(), walk_of(scheduler).grid
    value = Fitted(base=SOLVERS[name], bands=bands)
    fit = rows(STEPS, value.terms)
    with certified(made, certificate(tmp_path / "certificate.json", theirs, levels, value, fit=fit)):
        expected = made()
        assert torch.equal(made(), expected)
    assert torch.equal(made(), before)
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


def test_a_guided_pipeline_carries_one_for_its_weight(tmp_path):
    """DiT's, under Euler, with guidance 2: the recipe was certified with cfg of weight 1, and no other will do."""
    call, made = shipped("euler")
    before = torch.from_numpy(call())
    levels = walk_of(made.scheduler).grid
    for weight, refused in ((1.0, False), (0.5, True)):
        guidance = ClassifierFreeGuidance(weight=weight)
        path = certificate(
            tmp_path / "c.json", made.transformer, levels, Fitted(base=Euler()), (guidance,), rows(STEPS, 4)
        )
        with certified(made, path):
            if refused and hasattr(made, "guidance_scale"):
                with pytest.raises(SnrkitError, match=r"guidance scale of 1\.5"):
                    call()
            elif not refused and hasattr(made, "guidance_scale"):
                assert not torch.equal(torch.from_numpy(call()), before)
    assert torch.equal(torch.from_numpy(call()), before)


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
