"""Guidances by label other than cfg: their published forms, what they have in common with cfg, and where they act."""

from itertools import pairwise

import pytest
import torch

from snrkit.base.errors import SnrkitError
from snrkit.diffusion.prediction import X0, Cond, FlowVelocity, Prediction, Wrapped, from_x0
from snrkit.diffusion.process import Flow
from snrkit.sampling.corrections import (
    AdaptiveProjectedGuidance,
    CfgZeroStar,
    ClassifierFreeGuidance,
    FrequencyDecoupledGuidance,
    NoiseAwareness,
)
from snrkit.sampling.corrections.fdg import coarse
from snrkit.sampling.corrections.guidance import OfSteps, of_steps
from snrkit.sampling.grid import Karras, UniformLogsnr, UniformTime
from snrkit.sampling.sample import sample, start
from snrkit.sampling.sampler import Sampler, dry_run
from snrkit.sampling.solvers import Euler, Heun
from snrkit.sampling.step import Capabilities
from tests.exact import PROCESSES, mixture, tensor
from tests.sampling.test_corrections import place_at

SHAPE = (2, 6, 5)
AS_CFG = {
    "fdg": FrequencyDecoupledGuidance(weight=1.5),
    "fdg of equal factors": FrequencyDecoupledGuidance(weight=3.0, low=0.5, high=0.5),
    "apg": AdaptiveProjectedGuidance(weight=1.5, eta=1.0),
    "apg of a far radius": AdaptiveProjectedGuidance(weight=1.5, eta=1.0, radius=1e6),
    "cfg_zero_star": CfgZeroStar(weight=1.5, scale="one", zero_steps=0),
}
OTHERS = (
    FrequencyDecoupledGuidance(weight=1.5, low=0.3, high=1.2),
    AdaptiveProjectedGuidance(weight=1.5, eta=0.2, radius=0.7),
    CfgZeroStar(weight=1.5, zero_steps=0),
)


def labelled(process, shape=SHAPE):
    """A denoiser whose belief depends on whether there is a label."""
    with_label, without = mixture(process, shape=shape, seed=10), mixture(process, shape=shape, seed=11)

    def answer(x, level, told, cond):
        return (without if cond is None or bool((cond.labels < 0).all()) else with_label)(x, level)

    return Wrapped(process, answer)


def asked(process, correction, at=0.3):
    """(x, level, c, u, what is guided by the correction)."""
    x, level = torch.randn(3, *SHAPE, dtype=torch.float64), process.level(tensor(at))
    denoise, cond = labelled(process), Cond(labels=torch.zeros(3, dtype=torch.int64))
    c, u = denoise(x, level, cond=cond), denoise(x, level, cond=Cond(labels=-torch.ones(3, dtype=torch.int64)))
    return x, level, c, u, correction.wrap(denoise, place_at(level))(x, level, cond=cond)


@pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES)
@pytest.mark.parametrize("correction", AS_CFG.values(), ids=AS_CFG)
def test_each_has_settings_at_which_it_is_cfg(process, correction):
    """fdg of equal factors, apg with eta 1 and no radius in reach, CFG-Zero* of scale 1 whose first step moves."""
    _, _, c, u, found = asked(process, correction)
    torch.testing.assert_close(found.x0, c.x0 + 1.5 * (c.x0 - u.x0), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found.eps, c.eps + 1.5 * (c.eps - u.eps), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES)
@pytest.mark.parametrize("correction", OTHERS, ids=lambda c: c.kind)
def test_the_state_equation_holds(process, correction):
    """alpha x0 + sigma eps is still the state, and the answer is not that of cfg."""
    x, level, c, u, found = asked(process, correction)
    torch.testing.assert_close(level.alpha * found.x0 + level.sigma * found.eps, x)
    assert not torch.allclose(found.x0, c.x0 + 1.5 * (c.x0 - u.x0), rtol=0, atol=1e-3)


def pyramid_by_hand(row):
    """The coarse level of a list of numbers, and the same brought back, as Burt & Adelson have them."""
    taps, count = {-2: 1, -1: 4, 0: 6, 1: 4, 2: 1}, len(row)
    small = []
    for k in range((count + 1) // 2):
        near = [(taps[j - 2 * k], row[j]) for j in range(count) if abs(j - 2 * k) <= 2]
        small.append(sum(tap * value for tap, value in near) / sum(tap for tap, _ in near))
    back = []
    for i in range(count):
        near = [(taps[i - 2 * k], small[k]) for k in range(len(small)) if abs(i - 2 * k) <= 2]
        back.append(sum(tap * value for tap, value in near) / sum(tap for tap, _ in near))
    return back


@pytest.mark.parametrize("count", [1, 2, 3, 6, 9])
def test_the_coarse_level_is_that_of_a_laplacian_pyramid(count):
    """Rows, then columns, by hand; an image of one grey is kept, and a slope is, away from edges."""
    image = torch.randn(1, 1, count, 5, dtype=torch.float64)
    rows = [pyramid_by_hand(row) for row in image[0, 0].tolist()]
    columns = [pyramid_by_hand([row[j] for row in rows]) for j in range(5)]
    torch.testing.assert_close(coarse(image)[0, 0].T, tensor(columns))
    torch.testing.assert_close(coarse(torch.ones_like(image)), torch.ones_like(image))
    slope = torch.arange(16, dtype=torch.float64).expand(1, 1, 4, 16)
    torch.testing.assert_close(coarse(slope)[..., 4:12], slope[..., 4:12])


@pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES)
def test_fdg_guides_two_frequencies_apart(process):
    """Each level of the pyramid of c and of u, u_i + w_i (c_i - u_i), and their sum."""
    correction = FrequencyDecoupledGuidance(weight=4.0, low=0.25, high=1.5)
    _, _, c, u, found = asked(process, correction)
    for ours, with_label, without in ((found.x0, c.x0, u.x0), (found.eps, c.eps, u.eps)):
        low = [coarse(part) for part in (with_label, without)]
        high = [with_label - low[0], without - low[1]]
        wanted = sum(
            part[1] + weight * (part[0] - part[1]) for part, weight in ((low, 1 + 4 * 0.25), (high, 1 + 4 * 1.5))
        )
        torch.testing.assert_close(ours, wanted, rtol=1e-10, atol=1e-10)


def test_frequencies_of_videos_are_those_of_their_frames_and_tokens_have_none():
    """Each frame is guided as an image; states that are no images are refused."""
    correction = FrequencyDecoupledGuidance(weight=1.0, low=0.3)
    process, level = Flow(), Flow().level(tensor(0.0))
    video = [torch.randn(2, 3, 4, 6, 5, dtype=torch.float64) for _ in range(3)]
    ask = lambda x, a, b: correction.contrast(x, level, Prediction(a, a), Prediction(b, b)).x0  # noqa: E731
    whole = ask(*video)
    for frame in range(4):
        torch.testing.assert_close(whole[:, :, frame], ask(*(part[:, :, frame] for part in video)))
    tokens = Wrapped(process, lambda x, lv, told, cond: from_x0(x, x, lv))
    with pytest.raises(SnrkitError, match="fdg needs images"):
        correction.wrap(tokens, place_at(level))(torch.randn(2, 9, 4), level, cond=Cond(labels=torch.zeros(2).long()))


@pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES)
@pytest.mark.parametrize(("eta", "radius"), [(0.0, None), (0.0, 0.5), (0.3, 2.5)])
def test_apg_is_the_published_update(process, eta, radius):
    """c + (w - 1)(orthogonal + eta parallel) of c - u, cut to the radius, image by image, on the predicted images."""
    _, _, c, u, found = asked(process, AdaptiveProjectedGuidance(weight=2.0, eta=eta, radius=radius))
    for k in range(3):
        kept, d = c.x0[k].flatten(), (c.x0[k] - u.x0[k]).flatten()
        if radius is not None:
            d = d * min(1.0, radius / float(d.norm()))
        unit = kept / kept.norm()
        parallel = (d @ unit) * unit
        torch.testing.assert_close(found.x0[k].flatten(), kept + 2.0 * (d - parallel + eta * parallel))


def test_apg_without_its_parallel_part_is_orthogonal_to_the_image():
    """What eta 0 adds has no part along c, and no more than weight times the radius."""
    _, _, c, _, found = asked(Flow(), AdaptiveProjectedGuidance(weight=2.0, radius=0.1))
    push = (found.x0 - c.x0).flatten(1)
    torch.testing.assert_close((push * c.x0.flatten(1)).sum(1), torch.zeros(3, dtype=torch.float64), rtol=0, atol=1e-12)
    assert bool((push.norm(dim=1) <= 0.2 + 1e-12).all())


@pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES)
def test_cfg_zero_star_is_the_published_velocity(process):
    """(1 - w) s v_u + w v_c with s = <v_c, v_u>/|v_u|^2 of each image, of v = eps - x0."""
    _, _, c, u, found = asked(process, CfgZeroStar(weight=2.0, zero_steps=0))
    for k in range(3):
        v_c, v_u = ((p.eps[k] - p.x0[k]).flatten() for p in (c, u))
        s = (v_c @ v_u) / (v_u @ v_u)
        torch.testing.assert_close((found.eps - found.x0)[k].flatten(), (1 - 3.0) * s * v_u + 3.0 * v_c)


def test_an_unlabelled_velocity_that_is_a_multiple_of_the_labelled_guides_nothing():
    """s brings s v_u to v_c where it can, so that nothing is left to be weighted."""
    process = Flow()
    level, x = process.level(tensor(0.3)), torch.randn(3, *SHAPE, dtype=torch.float64)
    velocity = torch.randn(3, *SHAPE, dtype=torch.float64)

    def answer(state, at, told, cond):
        v = velocity if bool((cond.labels >= 0).all()) else -0.4 * velocity
        return Prediction(state - at.sigma * v, state + at.alpha * v)

    guided = CfgZeroStar(weight=5.0, zero_steps=0).wrap(Wrapped(process, answer), place_at(level))
    found = guided(x, level, cond=Cond(labels=torch.zeros(3, dtype=torch.int64)))
    torch.testing.assert_close(found.eps - found.x0, velocity)


@pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES)
@pytest.mark.parametrize("solver", [Euler(), Heun()], ids=lambda s: s.kind)
def test_first_steps_of_cfg_zero_star_stand_still(process, solver):
    """x/(alpha + sigma) is the same after two of six steps, in flow the state itself; the third moves."""
    levels = UniformTime(steps=6).levels(process) if process.kind == "flow" else Karras(steps=6).levels(process)
    x, cond = start(process, torch.randn(2, *SHAPE), levels[0]), Cond(labels=torch.zeros(2, dtype=torch.int64))
    walk = sample(labelled(process), solver, levels, x, corrections=(CfgZeroStar(weight=1.0, zero_steps=2),), cond=cond)
    states = [x, *(step.x_next for step in walk)]
    flows = [state / (level.alpha + level.sigma) for state, level in zip(states, levels, strict=True)]
    moved = [float((b - a).abs().max()) > 1e-9 for a, b in pairwise(flows)]
    assert moved == [False, False, True, True, True, True]


def test_standing_still_costs_one_evaluation_and_belongs_to_the_sampler_s_steps():
    """Six Euler steps ask 2 + 4 * 2 times; on a finer grid the first steps are the sampler's, whose end is a jump."""
    correction, process = CfgZeroStar(weight=1.0, zero_steps=2), Flow()
    sampler = Sampler(grid=UniformTime(steps=6), solver=Euler(), corrections=(correction,))
    assert dry_run(sampler, process, FlowVelocity(), (1, 4, 4)) == 2 + 4 * 2
    levels = UniformTime(steps=6).levels(process)
    held = of_steps(correction, correction, levels)
    assert isinstance(held, OfSteps)
    assert held.jumps == (levels[2],)
    assert of_steps(CfgZeroStar(zero_steps=0), CfgZeroStar(zero_steps=0), levels) == CfgZeroStar(zero_steps=0)


@pytest.mark.parametrize("correction", OTHERS, ids=lambda c: c.kind)
def test_they_are_guidances_like_cfg(correction):
    """One evaluation more a step, an interval, labels and their dropout needed, and they add to their neighbours."""
    process = PROCESSES["edm"]
    sampler = Sampler(grid=UniformLogsnr(steps=5), solver=Euler(), corrections=(correction, NoiseAwareness(weight=0.5)))
    assert dry_run(sampler, process, X0(), (1, 4, 4)) == 15
    inside = correction.model_copy(update={"t_max": 0.5})
    assert dry_run(sampler.model_copy(update={"corrections": (inside,)}), process, X0(), (1, 4, 4)) == 5 + 3
    assert correction.missing(Capabilities(True, True, False)) is None
    assert "label_dropout" in correction.missing(Capabilities(True, False, True))
    x, level, c, u, alone = asked(process, correction)
    beside = ClassifierFreeGuidance(weight=0.7).wrap(
        correction.wrap(labelled(process), place_at(level)), place_at(level)
    )
    found = beside(x, level, cond=Cond(labels=torch.zeros(3, dtype=torch.int64)))
    torch.testing.assert_close(found.x0, alone.x0 + 0.7 * (c.x0 - u.x0))
