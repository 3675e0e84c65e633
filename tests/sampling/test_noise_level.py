"""Noise level correction: what it moves, how far, and what the network is told."""

import math
from itertools import pairwise

import pytest
import torch

from snrkit.base.errors import SnrkitError
from snrkit.data.toy import gaussian_denoiser
from snrkit.diffusion.process import Ddpm, Edm, Vp
from snrkit.pipelines import acting
from snrkit.sampling.corrections import NoiseLevelCorrection
from snrkit.sampling.corrections.noise_level import OpenedNoiseLevelCorrection
from snrkit.sampling.grid import Karras, UniformTime
from snrkit.sampling.sample import sample, start
from snrkit.sampling.sampler import Sampler, named, open_with
from snrkit.sampling.solvers import Euler
from snrkit.sampling.step import NamedEstimator, Position
from tests.exact import THREE, mixture, run
from tests.sampling.test_corrections import Around

V = 0.25  # of the data


class Perfect:
    """Knows the level of states of N(0, V) by their mean square, alpha^2 V + sigma^2, in ve and vp."""

    def __init__(self, scaling):
        self.scaling = scaling

    def mean(self, states):
        square = states.double().flatten(1).square().mean(1)
        if self.scaling == "ve":
            return -(square - V).clamp(min=1e-12).log()  # a sampler may lose more than its noise
        noise = (square - V) / (1 - V)  # sigma^2, as alpha^2 = 1 - sigma^2
        return (1 - noise).log() - noise.log()

    def gradient(self, x, logsnr):
        raise AssertionError("not asked here")


class Saying(Perfect):
    """Says of every state what it was given."""

    def __init__(self, logsnr):
        self.logsnr = logsnr

    def mean(self, states):
        return torch.full((len(states),), self.logsnr, dtype=torch.float64)


def opened(estimator, **options):
    return OpenedNoiseLevelCorrection(NoiseLevelCorrection(**options), estimator)


def places(levels):
    return [Position(i, levels, *pair) for i, pair in enumerate(pairwise(levels))]


@pytest.mark.parametrize("process", [Edm(), Vp(), Ddpm()], ids=lambda p: p.kind)
def test_a_perfect_estimator_moves_no_exact_state(process):
    """States of exactly the variance of their level stay at it; those of another are held to be at their own."""
    levels = Karras(steps=12).levels(process)
    pattern = torch.tensor([1.0, -1.0], dtype=torch.float64).repeat(8).reshape(1, 1, 4, 4)
    for place in places(levels)[1:]:
        for shift in (0.0, -0.05, 0.05):
            true = process.level(place.here.logsnr + shift)
            x = pattern * (true.alpha**2 * V + true.sigma**2).sqrt()
            if not process.bounds[0] <= float(true.logsnr) <= process.bounds[1]:
                continue
            moved = opened(Perfect(process.scaling)).move(x, place, process)
            torch.testing.assert_close(moved.here.logsnr, true.logsnr.reshape(1), rtol=0, atol=1e-6)
            assert moved.there is place.there
            assert moved.nominal is place.nominal


@pytest.mark.parametrize("told", ["estimated", "nominal"])
def test_a_step_is_made_from_the_estimated_level(told):
    """In ve, image by image: sigma^ = sigma (1 + r), x' = (x - sigma^ eps) + sigma' eps; told sigma^ or sigma."""
    process, denoise = Edm(), mixture(Edm())
    levels = Karras(steps=8).levels(process)
    x = state = start(process, torch.randn(3, 1, 2, 2), levels[0])
    estimator = Perfect("ve")
    walk = sample(denoise, Euler(), levels, x, corrections=(opened(estimator, share=0.6, told=told),))
    for step, place in zip(walk, places(levels), strict=True):
        sigma = place.here.sigma.expand(3)
        if place.index:
            r = torch.exp(-0.3 * (estimator.mean(state) + 2 * sigma.log())) - 1
            room = [(-2 * side.sigma.log() - 2 * sigma.log()) / 2 for side in (levels[place.index - 1], place.there)]
            edges = sorted(float(torch.exp(-side[0] / 2)) for side in room)
            sigma = (sigma * (1 + r)).clamp(max(edges[0], levels[-2].sigma.item()), edges[1])
        here = process.level(-2 * sigma.log())
        eps = denoise(state, here, told=here if told == "estimated" else place.here).eps
        state = state + (place.there.sigma - sigma)[:, None, None, None] * eps
        torch.testing.assert_close(step.x_next, state, rtol=0, atol=1e-9)


@pytest.mark.parametrize("process", THREE.values(), ids=THREE)
@pytest.mark.parametrize("said", [-50.0, 50.0])
def test_a_level_stays_between_its_neighbours_and_within_the_process(process, said):
    """At most half of the way to the level before and after, and never beyond the bounds, whatever is estimated."""
    levels = UniformTime(steps=6).levels(process) if process.kind == "flow" else Karras(steps=6).levels(process)
    x = torch.randn(2, 1, 2, 2, dtype=torch.float64)
    first, *others = places(levels)
    assert opened(Saying(said)).move(x, first, process) is first
    for place in others:
        found = opened(Saying(said)).move(x, place, process).here.logsnr
        beside = levels[place.index - 1] if said < 0 else place.there
        half = (float(place.here.logsnr) + float(beside.logsnr)) / 2
        bound = process.bounds[said > 0]
        wanted = max(half, bound) if said < 0 else min(half, bound)
        wanted = min(wanted, float(place.here.logsnr)) if said < 0 else max(wanted, float(place.here.logsnr))
        torch.testing.assert_close(found, torch.full((2,), wanted, dtype=torch.float64))
        assert math.isfinite(wanted)


def test_with_a_perfect_network_and_estimator_the_variance_comes_nearer():
    """On N(0, V) Euler with 13 steps ends at 0.789 of the spread; from the levels of its states it loses less."""
    process = Edm()
    levels = Karras(steps=13).levels(process)
    x = start(process, torch.ones(1, 1, 1, 1), levels[0], V)
    denoise = gaussian_denoiser(process, 0.0, V, (1, 1, 1))
    plain, corrected = (
        float(run(Euler(), denoise, levels, x, corrections=c)) / math.sqrt(V) for c in ((), (opened(Perfect("ve")),))
    )
    assert plain == pytest.approx(0.7893, abs=5.1e-5)
    assert plain < corrected < 1


def test_the_estimator_is_the_run_s():
    """It is named where the share is not 0 alone, and no pipeline takes the correction."""
    sampler = lambda share: Sampler(  # noqa: E731
        grid=Karras(steps=5), solver=Euler(), corrections=(NoiseLevelCorrection(share=share),)
    )
    assert named(sampler(0.5), Edm()) == [("noise_level_correction", NamedEstimator())]
    assert named(sampler(0.0), Edm()) == []
    (ready,) = open_with(sampler(0.5), Edm(), Around(Edm())).corrections
    for one in (NoiseLevelCorrection(), ready):
        with pytest.raises(SnrkitError, match="cannot act in a pipeline"):
            acting([one])
