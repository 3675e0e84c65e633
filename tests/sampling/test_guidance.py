"""Guidance: its formulas, costs, intervals, how it adds, and what it needs of a model."""

import math
from pathlib import Path
from typing import Literal

import pytest
import torch

from snrkit.base.errors import SnrkitError
from snrkit.base.value import Value
from snrkit.data.toy import blind_prior
from snrkit.diffusion.prediction import X0, Cond, Eps, FlowVelocity, Prediction, V, Wrapped, from_x0
from snrkit.diffusion.process import Ddpm, Edm, Flow
from snrkit.sampling.corrections import (
    Autoguidance,
    ClassifierFreeGuidance,
    ClipX0,
    Dcw,
    EpsilonScaling,
    NoiseAwareness,
    NoiseAwarenessClassifier,
)
from snrkit.sampling.grid import Karras, UniformLogsnr, UniformTime
from snrkit.sampling.sample import sample, start
from snrkit.sampling.sampler import Dummy, Sampler, dry_run, named, open_with
from snrkit.sampling.solvers import Euler, Heun
from snrkit.sampling.step import Capabilities, NamedEstimator, NamedWeights, Position
from snrkit.training.level_samplers import LogNormal
from tests.exact import gaussian, mixture, run, tensor
from tests.sampling.test_corrections import labelled, place_at
from tests.toys import member


def blind(process, seed=5):
    """An exact denoiser that also answers told=None."""
    sampler = LogNormal()
    return mixture(process, seed=seed, prior=blind_prior(lambda u: sampler.logsnr(u, process)))


def test_noise_awareness_is_s_plus_w_times_s_minus_blind():
    """(1 + w) s(x|t) - w s(x), on x0 and eps alike; the state equation holds."""
    process, x = Edm(), torch.randn(3, 1, 2, 2, dtype=torch.float64)
    level, denoise = process.level(tensor(1.0)), blind(process)
    known, unknown = denoise(x, level), denoise(x, level, told=None)
    guided = NoiseAwareness(weight=0.7).wrap(denoise, place_at(level))(x, level)
    torch.testing.assert_close(guided.x0, 1.7 * known.x0 - 0.7 * unknown.x0)
    torch.testing.assert_close(guided.eps, 1.7 * known.eps - 0.7 * unknown.eps)
    torch.testing.assert_close(level.alpha * guided.x0 + level.sigma * guided.eps, x)


def test_noise_awareness_is_neutral_where_the_level_says_nothing():
    """An EDM network's optimal F is 0 on N(0, sigma_data^2), told or not: guidance by told=None changes nothing."""
    from snrkit.diffusion.denoiser import EdmPrecondition, NetworkDenoiser

    process = Edm()
    denoise = NetworkDenoiser(lambda x, time, cond: torch.zeros_like(x), process, X0(), EdmPrecondition(), 0.5)
    level, x = process.level(tensor(0.0)), torch.randn(3, 1, 2, 2, dtype=torch.float64)
    exact = gaussian(process, mean=0.0, variance=0.25, shape=(1, 2, 2))(x, level)
    guided = NoiseAwareness(weight=2.0).wrap(denoise, place_at(level))(x, level)
    torch.testing.assert_close(guided.x0, exact.x0)


def both_unknown(process):
    """A denoiser that depends on label and on whether it is told the level."""
    parts = {(label, told): mixture(process, seed=10 + 2 * label + told) for label in (-1, 0, 1) for told in (0, 1)}

    def answer(x, level, told, cond):
        each = [parts[int(c), int(told is not None)](x[i : i + 1], level) for i, c in enumerate(cond.labels)]
        return Prediction(torch.cat([p.x0 for p in each]), torch.cat([p.eps for p in each]))

    return Wrapped(process, answer)


@pytest.mark.parametrize("order", [1, -1])
def test_neighbouring_guidances_add(order):
    """u(c,t) + w_cfg (u(c,t) - u(0,t)) + w_nag (u(c,t) - u(c,0)), in either order, at three evaluations."""
    process, x = Edm(), torch.randn(2, 1, 2, 2, dtype=torch.float64)
    level, cond, none = (
        process.level(tensor(0.0)),
        Cond(labels=torch.tensor([0, 1])),
        Cond(labels=torch.tensor([-1, -1])),
    )
    denoise = both_unknown(process)
    c, u, n = denoise(x, level, cond=cond), denoise(x, level, cond=none), denoise(x, level, told=None, cond=cond)
    guided = denoise
    for guidance in (ClassifierFreeGuidance(weight=1.5), NoiseAwareness(weight=0.5))[::order]:
        guided = guidance.wrap(guided, place_at(level))
    wanted = c.x0 + 1.5 * (c.x0 - u.x0) + 0.5 * (c.x0 - n.x0)
    torch.testing.assert_close(guided(x, level, cond=cond).x0, wanted)
    sampler = Sampler(
        grid=Karras(steps=7), solver=Heun(),
        corrections=(ClassifierFreeGuidance(weight=1.5), NoiseAwareness(weight=0.5)),
    )  # fmt: skip
    assert dry_run(sampler, process, X0(), (1, 4, 4)) == 3 * 13


@pytest.mark.parametrize(("weight", "calls"), [(0.0, 13), (0.5, 26)])
def test_noise_awareness_costs_one_more_call(weight, calls):
    """Twice the evaluations when active, none when neutral."""
    sampler = Sampler(grid=Karras(steps=13), solver=Euler(), corrections=(NoiseAwareness(weight=weight),))
    assert dry_run(sampler, Edm(), X0(), (1, 4, 4)) == calls


@pytest.mark.parametrize("target", [X0(), Eps(), V(), FlowVelocity()], ids=str)
@pytest.mark.parametrize("process", [Edm(), Ddpm(), Flow()], ids=lambda p: p.kind)
def test_rescale_gives_the_spread_of_the_conditional_answer(process, target):
    """phi = 1: the target's standard deviation per image is that of c; as diffusers' rescale."""
    x = torch.randn(2, 1, 4, 4, dtype=torch.float64)
    level, cond = process.level(tensor(0.5)), Cond(labels=torch.tensor([0, 1]))
    parts = {label: mixture(process, shape=(1, 4, 4), seed=label + 10) for label in (-1, 0, 1)}
    denoise = Wrapped(process, lambda s, lv, told, c: parts[int(c.labels[0])](s, lv))
    a, b = target.direction(level)
    said = lambda p: a * p.x0 + b * p.eps  # noqa: E731
    c, u = denoise(x, level, cond=cond), denoise(x, level, cond=Cond(labels=torch.tensor([-1, -1])))
    plain = said(c) + 3 * (said(c) - said(u))
    for phi in (0.3, 0.7, 1.0):
        guidance = ClassifierFreeGuidance(weight=3.0, rescale=phi, rescale_of=target)
        guided = guidance.wrap(denoise, place_at(level))(x, level, cond=cond)
        factor = said(c).std((1, 2, 3), keepdim=True) / plain.std((1, 2, 3), keepdim=True)
        torch.testing.assert_close(said(guided), phi * plain * factor + (1 - phi) * plain)
        torch.testing.assert_close(level.alpha * guided.x0 + level.sigma * guided.eps, x)


@pytest.mark.parametrize("order", [1, -1])
def test_a_rescale_is_that_of_its_own_guidance(order):
    """Next to another guidance, before or after it, cfg's rescale acts on p + w (p - u) alone."""
    process, x = Edm(), torch.randn(2, 1, 4, 4, dtype=torch.float64)
    level, cond = process.level(tensor(0.0)), Cond(labels=torch.tensor([0, 1]))
    scaled = lambda k: Wrapped(process, lambda s, lv, t, c: from_x0(s, k * s, lv))  # noqa: E731
    parts = {(False, True): scaled(0.2), (True, True): scaled(0.5), (True, False): scaled(0.3)}
    denoise = Wrapped(process, lambda s, lv, t, c: parts[bool((c.labels >= 0).all()), t is not None](s, lv))
    rescaled, aware = ClassifierFreeGuidance(weight=2.0, rescale=0.7), NoiseAwareness(weight=0.5)
    guided = denoise
    for guidance in (rescaled, aware)[::order]:
        guided = guidance.wrap(guided, place_at(level))
    p = denoise(x, level, cond=cond)
    alone = [g.wrap(denoise, place_at(level))(x, level, cond=cond).x0 - p.x0 for g in (rescaled, aware)]
    torch.testing.assert_close(guided(x, level, cond=cond).x0, p.x0 + alone[0] + alone[1])


@pytest.mark.parametrize("correction", [ClassifierFreeGuidance(weight=1.0), Autoguidance(weight=1.0, checkpoint=5)])
def test_the_other_model_is_asked_the_same_question(correction):
    """Label, augmentation parameters and `told` reach the model that is pushed away from; cfg drops the label alone."""
    process, asked = Edm(), []

    def answer(x, level, told, cond):
        asked.append((told, cond))
        return from_x0(x, 0.5 * x, level)

    said = Wrapped(process, answer)
    level, told = process.level(tensor(0.0)), process.level(tensor(0.5))
    cond = Cond(labels=torch.tensor([1, 0]), augment=torch.ones(2, 9))
    sampler = Sampler(grid=Karras(steps=5), solver=Euler(), corrections=(correction,))
    (ready,) = open_with(sampler, process, Known(process, said)).corrections
    ready.wrap(said, place_at(level))(torch.randn(2, 1, 2, 2), level, told=told, cond=cond)
    (_, first), (told_other, other) = asked
    assert told_other is told
    assert torch.equal(other.augment, first.augment)
    wanted = torch.tensor([-1, -1]) if correction.kind == "cfg" else first.labels
    assert torch.equal(other.labels, wanted)


def costs(*corrections):
    """Evaluations of five Euler steps."""
    return dry_run(Sampler(grid=Karras(steps=5), solver=Euler(), corrections=corrections), Edm(), X0(), (1, 4, 4))


def test_autoguidance_stands_before_what_changes_the_prediction():
    """The weaker model is asked bare, so the model it is compared with must be bare too."""
    later = Autoguidance(weight=1.0, average="network")
    for before in (EpsilonScaling(scale=1.01), ClipX0()):
        with pytest.raises(SnrkitError, match=r"^autoguidance .* list it before"):
            costs(before, later)
        assert costs(later, before) == 10
    assert costs(Dcw(pixel=0.1), NoiseAwareness(weight=1.0), later) == 15


class Opening(Value):
    """A correction that is known only when it is opened."""

    kind: Literal["opening"] = "opening"
    opened: EpsilonScaling | Dcw

    def open(self, sources, levels):
        return self.opened


def test_a_correction_is_judged_by_what_it_opens():
    """Before autoguidance it may change states, and not what the model says."""
    later = Autoguidance(weight=1.0, average="network")
    with member(Sampler, "corrections", Opening):
        assert costs(Opening(opened=Dcw(pixel=0.1)), later) == 10
        with pytest.raises(SnrkitError, match="list it before opening"):
            costs(Opening(opened=EpsilonScaling(scale=1.01)), later)


def test_a_rescale_of_nothing_is_refused():
    """rescale_of without rescale would do nothing."""
    with pytest.raises(ValueError, match="no effect while rescale is 0"):
        ClassifierFreeGuidance(weight=1.0, rescale_of=Eps())


@pytest.mark.parametrize("make", [ClassifierFreeGuidance, NoiseAwareness])
def test_outside_the_interval_nothing_is_asked(make):
    """Steps that begin outside are plain, bit for bit, and cost one evaluation; both Heun calls share the choice."""
    process, low, high = Edm(), -2.0, 3.0
    levels = Karras(steps=9).levels(process)
    inside = sum(low <= float(level.logsnr) <= high for level in levels[:-1])
    assert 0 < inside < 9
    guidance = make(weight=1.0, logsnr_min=low, logsnr_max=high)
    sampler = Sampler(grid=Karras(steps=9), solver=Heun(), corrections=(guidance,))
    assert dry_run(sampler, process, X0(), (1, 4, 4)) == 17 + 2 * inside
    for level in levels[:-1]:
        wrapped = guidance.wrap(labelled(process), place_at(level))
        assert isinstance(wrapped, Wrapped) != (low <= float(level.logsnr) <= high)


@pytest.mark.parametrize("make", [ClassifierFreeGuidance, NoiseAwareness])
def test_an_interval_in_t_counts_steps(make):
    """t falls evenly from 1 to 0 over eleven steps; on an even grid in logsnr the interval is one of logsnr too."""
    process, low, high = Edm(), 0.1, 0.7
    sampler = Sampler(
        grid=UniformLogsnr(steps=11), solver=Euler(), corrections=(make(weight=1.0, t_min=low, t_max=high),)
    )
    assert dry_run(sampler, process, X0(), (1, 4, 4)) == 11 + 7  # t = .7, .6, ..., .1
    ends = [float(level.logsnr) for level in UniformLogsnr(steps=11).levels(process)[:-1]]
    bounds = [ends[0] + (ends[-1] - ends[0]) * (1 - t) + nudge for t, nudge in ((high, -1e-9), (low, 1e-9))]
    guidances = make(weight=1.0, t_min=low, t_max=high), make(weight=1.0, logsnr_min=bounds[0], logsnr_max=bounds[1])
    x = torch.randn(2, 1, 2, 2, dtype=torch.float64)
    denoise = labelled(process) if make is ClassifierFreeGuidance else blind(process)
    cond = Cond(labels=torch.tensor([0, 1]))
    found = []
    for guidance in guidances:
        levels = UniformLogsnr(steps=11).levels(process)
        state = x
        for step in sample(denoise, Euler(), levels, state, corrections=[guidance], cond=cond):
            state = step.x_next
        found.append(state)
    assert torch.equal(found[0], found[1])
    with pytest.raises(ValueError, match=r"t_min 0\.9 must not be above t_max 0\.1"):
        make(weight=1.0, t_min=0.9, t_max=0.1)


def test_an_interval_is_each_images_own():
    """With a level per image only those inside are guided."""
    process, x = Edm(), torch.randn(2, 1, 2, 2, dtype=torch.float64)
    level = process.level(tensor([0.0, 5.0]))
    denoise = blind(process)
    guided = NoiseAwareness(weight=1.0, logsnr_max=1.0).wrap(denoise, Position(0, (level, level), level, level))
    plain, found = denoise(x, level), guided(x, level)
    assert not torch.allclose(plain.x0[0], found.x0[0])
    assert torch.equal(plain.x0[1], found.x0[1])


def test_what_a_model_lacks():
    """cfg needs labels and their dropout, noise awareness the dropout of the level: each says so."""
    nothing, all_ = Capabilities(False, False, False), Capabilities(True, True, True)
    assert ClassifierFreeGuidance().missing(all_) is None
    assert NoiseAwareness().missing(all_) is None
    assert "label_dropout" in ClassifierFreeGuidance().missing(Capabilities(True, False, True))
    assert "noise_dropout" in NoiseAwareness().missing(nothing)


class Known(Dummy):
    """Sources with a given weaker model and estimator."""

    def __init__(self, process, weaker=None, gradient=None):
        super().__init__(process)
        self.weaker, self._gradient = weaker, gradient

    def denoiser(self, named):
        return self.weaker

    def gradient(self, x, logsnr):
        return self._gradient(x, logsnr)


def test_autoguidance_is_p_plus_w_times_p_minus_weaker():
    """Neutral at 0, costs one evaluation of the weaker model more, and must name one."""
    process, x = Edm(), torch.randn(3, 1, 2, 2, dtype=torch.float64)
    level, strong, weak = process.level(tensor(1.0)), mixture(process), mixture(process, seed=9)

    def sampler(w):
        return Sampler(grid=Karras(steps=5), solver=Euler(), corrections=(Autoguidance(weight=w, checkpoint=5),))

    (correction,) = open_with(sampler(0.8), process, Known(process, weak)).corrections
    guided = correction.wrap(strong, place_at(level))(x, level)
    torch.testing.assert_close(guided.x0, strong(x, level).x0 + 0.8 * (strong(x, level).x0 - weak(x, level).x0))
    (neutral,) = open_with(sampler(0.0), process, Known(process, weak)).corrections
    assert torch.equal(neutral.wrap(strong, place_at(level))(x, level).x0, strong(x, level).x0)
    assert dry_run(sampler(0.8), process, X0(), (1, 4, 4)) == 10
    with pytest.raises(ValueError, match="cannot guide itself"):
        Autoguidance(weight=1.0)


@pytest.mark.parametrize("process", [Edm(), Ddpm(), Flow()], ids=lambda p: p.kind)
def test_the_classifier_form_moves_the_score_by_the_gradient(process):
    """score + w grad ln q, score = -eps/sigma; x0 follows from the state equation; weight 0 is neutral."""
    x, level, denoise = torch.randn(3, 1, 2, 2, dtype=torch.float64), process.level(tensor(1.0)), mixture(process)
    pull = lambda state, logsnr: -state * 0.3  # noqa: E731
    sampler = lambda w: Sampler(grid=Karras(steps=5), solver=Euler(), corrections=(NoiseAwarenessClassifier(weight=w),))  # noqa: E731
    (correction,) = open_with(sampler(0.5), process, Known(process, gradient=pull)).corrections
    guided, plain = correction.wrap(denoise, place_at(level))(x, level), denoise(x, level)
    torch.testing.assert_close(-guided.eps / level.sigma, -plain.eps / level.sigma + 0.5 * pull(x, None))
    torch.testing.assert_close(level.alpha * guided.x0 + level.sigma * guided.eps, x)
    (neutral,) = open_with(sampler(0.0), process, Known(process)).corrections
    assert torch.equal(neutral.wrap(denoise, place_at(level))(x, level).x0, plain.x0)


def test_the_exact_posterior_of_levels_is_followed():
    """On N(0, v) with two possible levels, grad ln p(t | x) = s(x|t) - s(x): the score identity of both forms."""
    process, v, weight = Edm(), 0.25, 0.6
    prior = tensor([-1.0, 1.0])
    denoise = gaussian(process, mean=0.0, variance=v, shape=(1, 2, 2))
    blinded = type(denoise)(process, denoise.means, denoise.variances, denoise.weights, prior)
    x, level = torch.randn(3, 1, 2, 2, dtype=torch.float64), process.level(prior[1])

    def log_p(state, logsnr):
        spread = v + process.level(logsnr).sigma ** 2
        return -(state**2 / spread + spread.log()).flatten(1).sum(1) / 2

    def gradient(state, logsnr):
        state = state.detach().requires_grad_(True)
        logs = torch.stack([log_p(state, one) for one in prior])
        return torch.autograd.grad((log_p(state, logsnr) - logs.logsumexp(0)).sum(), state)[0]

    (correction,) = open_with(
        Sampler(grid=Karras(steps=5), solver=Euler(), corrections=(NoiseAwarenessClassifier(weight=weight),)),
        process, Known(process, gradient=gradient),
    ).corrections  # fmt: skip
    by_gradient = correction.wrap(denoise, place_at(level))(x, level)
    answers = [denoise(x, process.level(one)) for one in prior]
    shares = torch.softmax(torch.stack([log_p(x, one) for one in prior]), 0)
    scores = [-a.eps / process.level(one).sigma for a, one in zip(answers, prior, strict=True)]
    blind_score = sum(s[:, None, None, None] * score for s, score in zip(shares, scores, strict=True))
    wanted = (1 + weight) * scores[1] - weight * blind_score
    torch.testing.assert_close(-by_gradient.eps / level.sigma, wanted)
    # the classifier-free form on the same model mixes x0 over levels, and not scores: there the two forms part
    free = NoiseAwareness(weight=weight).wrap(blinded, place_at(level))(x, level)
    mean_x0 = sum(s[:, None, None, None] * a.x0 for s, a in zip(shares, answers, strict=True))
    torch.testing.assert_close(free.x0, (1 + weight) * answers[1].x0 - weight * mean_x0)
    assert not torch.allclose(free.x0, by_gradient.x0, rtol=0, atol=1e-3)


def test_pure_noise_has_no_classifier_guidance():
    """At alpha = 0 x0 would be moved without bound; an interval avoids it."""
    sampler = Sampler(grid=UniformTime(steps=5), solver=Euler(), corrections=(NoiseAwarenessClassifier(weight=1.0),))
    with pytest.raises(SnrkitError, match="undefined at alpha = 0"):
        dry_run(sampler, Flow(), FlowVelocity(), (1, 4, 4))
    kept = NoiseAwarenessClassifier(weight=1.0, logsnr_min=-8.0)
    assert dry_run(sampler.model_copy(update={"corrections": (kept,)}), Flow(), FlowVelocity(), (1, 4, 4)) == 5


def test_an_interval_the_wrong_way_round_is_refused():
    """logsnr_min above logsnr_max would never act."""
    with pytest.raises(ValueError, match="must not be above"):
        NoiseAwareness(weight=1.0, logsnr_min=2.0, logsnr_max=1.0)


def test_guidance_changes_samples_of_a_blind_network():
    """Converse of neutrality, through the sampling loop, on a denoiser that answers told=None."""
    process = Edm()
    levels = Karras(steps=6).levels(process)
    x = start(process, torch.randn(3, 1, 2, 2), levels[0])
    plain = run(Euler(), blind(process), levels, x)
    assert torch.equal(plain, run(Euler(), blind(process), levels, x, corrections=(NoiseAwareness(weight=0.0),)))
    steps = list(sample(blind(process), Euler(), levels, x, corrections=(NoiseAwareness(weight=1.0),)))
    assert not torch.allclose(plain, steps[-1].x_next, atol=1e-4)
    assert math.isfinite(float(steps[-1].x_next.sum()))


class Borrowed(Value):
    """A correction of its own that opens weights, an estimator and statistics."""

    kind: Literal["borrowed"] = "borrowed"

    def open(self, sources, levels):
        sources.denoiser(NamedWeights(Path("runs/other"), average="ema-500"))
        sources.estimator(NamedEstimator())
        sources.forward(levels[:-1])
        return self

    def wrap(self, denoise, position):
        return denoise


def test_what_is_named_is_what_is_asked_for():
    """Whatever a correction asks of its sources is known by its kind, in order, without a list of corrections."""
    sampler = Sampler(grid=Karras(steps=5), solver=Euler(), corrections=(Autoguidance(weight=0.0, checkpoint=5),))
    assert named(sampler, Edm()) == [("autoguidance", NamedWeights(checkpoint=5))]
    more = sampler.model_copy(update={"corrections": (*sampler.corrections, Borrowed())})
    assert named(more, Edm()) == [
        ("autoguidance", NamedWeights(checkpoint=5)),
        ("borrowed", NamedWeights(Path("runs/other"), average="ema-500")), ("borrowed", NamedEstimator()),
    ]  # fmt: skip
    silent = sampler.model_copy(update={"corrections": (NoiseAwarenessClassifier(weight=0.0),)})
    assert named(silent, Edm()) == []
