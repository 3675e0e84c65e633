"""The sampling loop and the randomness of images."""

from itertools import pairwise

import pytest
import torch

from snrkit.base.errors import SnrkitError
from snrkit.diffusion.prediction import Cond
from snrkit.diffusion.process import Edm
from snrkit.sampling.corrections import Dcw
from snrkit.sampling.grid import Karras, UniformTime
from snrkit.sampling.sample import sample, start
from snrkit.sampling.sampler import SampleConfig, Sampler, dry_run, parse_seeds
from snrkit.sampling.solvers import Ancestral, Churn, Dpmpp2m, Euler, Heun
from snrkit.training.randomness import ImageStreams, Plan
from tests.exact import PROCESSES, gaussian, mixture, run, tensor


def test_each_step_starts_where_the_last_ended():
    """The chain of records is the trajectory, and every call carries the level it was asked at."""
    process = Edm()
    levels = Karras(steps=5).levels(process)
    x = start(process, torch.randn(2, 1, 2, 2), levels[0])
    steps = list(sample(mixture(process), Heun(), levels, x, corrections=(Dcw(pixel=0.01),)))
    assert torch.equal(steps[0].x, x)
    for before, after in pairwise(steps):
        assert torch.equal(before.x_next, after.x)
    for step in steps:
        assert step.calls[0].level is step.position.here


def test_solvers_that_draw_noise_say_so():
    """Without a source of noise a stochastic solver is refused and a deterministic one works."""
    process = Edm()
    levels = Karras(steps=3).levels(process)
    x = torch.zeros(1, 1, 2, 2, dtype=torch.float64)
    run(Euler(), mixture(process), levels, x)
    with pytest.raises(SnrkitError, match="draws noise"):
        run(Ancestral(), mixture(process), levels, x)


@pytest.mark.parametrize("name", PROCESSES)
def test_start_has_the_published_variance(name):
    """n in vp, sigma*n in ve and flow; `exact` is the marginal of Gaussian data."""
    process = PROCESSES[name]
    level, noise = process.level(tensor(process.bounds[0])), torch.ones(1, 1, 1, 1)
    published = 1.0 if process.scaling == "vp" else float(level.sigma)
    assert float(start(process, noise, level)) == pytest.approx(published)
    exact = float((level.alpha**2 * 0.3 + level.sigma**2).sqrt())
    assert float(start(process, noise, level, 0.3)) == pytest.approx(exact)


def images(seeds, solver):
    process = Edm()
    levels = Karras(steps=6).levels(process)
    noise = ImageStreams(seeds)
    x = start(process, noise.normal((1, 2, 2)), levels[0])
    return run(solver, gaussian(process, shape=(1, 2, 2)), levels, x, noise=noise)


@pytest.mark.parametrize("solver", [Euler(), Ancestral(), Churn()], ids=str)
def test_an_image_depends_on_its_seed_alone(solver):
    """Image 1234 is the same in any company, also inside stochastic solvers."""
    together = images([7, 1234, 5], solver)
    assert torch.equal(together[1:2], images([1234], solver))
    assert torch.equal(together[[2, 0]], images([5, 7], solver))
    assert not torch.equal(together[0], together[1])


def test_streams_give_labels_first_then_noise():
    """A label costs the noise nothing: conditional and unconditional images of one seed start alike."""
    with_labels, without = ImageStreams([3, 4]), ImageStreams([3, 4])
    labels = with_labels.labels(10)
    assert labels.dtype == torch.int64
    assert ((labels >= 0) & (labels < 10)).all()
    assert torch.equal(with_labels.normal((2, 2)), without.normal((2, 2)))
    counts = torch.bincount(ImageStreams(range(5000)).labels(10), minlength=10)
    assert (counts - 500).abs().max() < 100


def test_slices_are_drawn_alike_alone_and_together():
    """Slice 3 of step 9 is the same whoever draws it; levels are stratified over the global batch."""
    plan = Plan(seed=1, batch=64, slice=16, pool=100, shape=(1, 2, 2))
    whole, part = plan.draw(9, range(4)), plan.draw(9, [3])
    for name in ("positions", "level", "noise", "augment", "label_drop", "noise_drop", "flip"):
        assert torch.equal(getattr(whole, name)[48:], getattr(part, name))
    strata = (whole.level * 64).long()
    assert torch.equal(strata, torch.arange(64))
    assert not torch.equal(whole.noise, plan.draw(10, range(4)).noise)


@pytest.mark.parametrize(
    ("solver", "evaluations"), [(Euler(), 18), (Heun(), 35), (Churn(), 35), (Ancestral(), 18), (Dpmpp2m(), 18)]
)
def test_evaluations_are_counted_by_running(solver, evaluations):
    """18 steps: Heun 2*18 - 1 = 35 as EDM counts, one-call solvers 18; guidance doubles."""
    from snrkit.diffusion.prediction import X0
    from snrkit.sampling.corrections import ClassifierFreeGuidance

    sampler = Sampler(grid=Karras(steps=18), solver=solver)
    assert dry_run(sampler, Edm(), X0(), (1, 2, 2)) == evaluations
    guided = Sampler(grid=Karras(steps=18), solver=solver, corrections=(ClassifierFreeGuidance(weight=1),))
    assert dry_run(guided, Edm(), X0(), (1, 2, 2)) == 2 * evaluations


def test_the_condition_reaches_the_denoiser_and_guidance():
    """The bound condition is what the network and every correction sees."""
    process, seen = Edm(), []
    from snrkit.diffusion.prediction import Prediction, Wrapped

    def answer(x, level, told, cond):
        seen.append(cond.labels.tolist())
        return Prediction(torch.zeros_like(x), x)

    levels, cond = Karras(steps=2).levels(process), Cond(labels=torch.tensor([4]))
    from snrkit.sampling.corrections import ClassifierFreeGuidance

    guided = (ClassifierFreeGuidance(weight=1.0),)
    list(sample(Wrapped(process, answer), Euler(), levels, torch.zeros(1, 1, 2, 2), corrections=guided, cond=cond))
    assert seen == [[4], [-1], [4], [-1]]


@pytest.mark.parametrize(("text", "seeds"), [("0-3", [0, 1, 2, 3]), ("5", [5]), ("0-1,7-8", [0, 1, 7, 8])])
def test_seed_ranges(text, seeds):
    """Ranges include both ends."""
    assert list(parse_seeds(text)) == seeds
    assert SampleConfig(seeds=text).seeds == text


@pytest.mark.parametrize("text", ["a-b", "3-1", "0-5,3", "-4", ""])
def test_bad_seed_ranges_are_refused(text):
    """Words, empty ranges and repetitions."""
    with pytest.raises(ValueError, match="seeds"):
        SampleConfig(seeds=text)


def test_sampling_from_the_exact_denoiser_gives_the_data():
    """Many Heun steps from the exact start reproduce mean and variance of the data."""
    process = PROCESSES["flow"]
    levels = UniformTime(steps=64).levels(process)
    x = run(Heun(), gaussian(process, shape=(1, 2, 2)), levels, torch.randn(20_000, 1, 2, 2, dtype=torch.float64))
    assert float(x.mean()) == pytest.approx(0.3, abs=0.01)
    assert float(x.var()) == pytest.approx(0.25, rel=0.02)
