"""Averages of weights: recursions against their profiles, and post-hoc reconstruction."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from snrkit.training.ema import (
    Average,
    Decay,
    HalfLife,
    Power,
    Snapshot,
    combine,
    distance,
    gamma_of,
    geometric,
    longest,
    posthoc,
    width_of,
)

STEPS, BATCH = 2000, 10


def track(value, path, steps=STEPS):
    """The average of a scalar weight that follows `path` (steps,)."""
    network = nn.Linear(1, 1, bias=False).double()
    average = Average(value, network)
    for step in range(steps):
        network.weight.data.fill_(path[step])
        average.update(step * BATCH, BATCH)
    return float(average.tensors["weight"])


@given(width=st.floats(0.01, 0.27))
def test_widths_and_exponents_invert(width):
    """sqrt((g + 1)/((g + 2)^2 (g + 3))) of the exponent is the width: the standard deviation of the profile."""
    gamma = gamma_of(width)
    assert width_of(gamma) == pytest.approx(width, rel=1e-9)
    tau = (np.arange(200_000) + 0.5) / 200_000
    profile = tau**gamma / (tau**gamma).sum()
    assert np.sqrt(profile @ tau**2 - (profile @ tau) ** 2) == pytest.approx(width, rel=1e-3)


def test_published_exponents():
    """0.05 is 16.97 and 0.10 is 6.94 (Karras et al. 2024); a flat profile has 0.289."""
    assert gamma_of(0.05) == pytest.approx(16.972, abs=1e-3)
    assert gamma_of(0.10) == pytest.approx(6.937, abs=1e-3)
    assert width_of(0) == pytest.approx(math.sqrt(1 / 12))


@pytest.mark.parametrize("value", [HalfLife(half_life=300, ramp=None), Decay(decay=0.98, warmup=False), Power()])
def test_the_recursion_has_its_profile(value):
    """A weight that is 1 in one step alone leaves that step's profile in the average."""
    for place in (1500, 1900, 1999):
        path = np.zeros(STEPS)
        path[place] = 1
        if isinstance(value, Power):
            edges = np.array([place, place + 1]) / STEPS
            expected = np.diff(edges ** (value.gamma + 1))[0]
        else:
            beta = value.beta(STEPS * BATCH, BATCH)
            expected = (1 - beta) * beta ** (STEPS - 1 - place)
        assert track(value, path) == pytest.approx(expected, rel=1e-9)


def test_decay_and_half_life_are_one_average():
    """The half-life that a decay amounts to gives the same recursion; a warm-up forgets the start faster."""
    decay = Decay(decay=0.99, warmup=False)
    same = HalfLife(half_life=decay.span(BATCH), ramp=None)
    assert same.beta(10**6, BATCH) == pytest.approx(0.99, rel=1e-12)
    assert [Decay(decay=0.99).beta(n * BATCH, BATCH) for n in (0, 1, 8)] == pytest.approx([0, 2 / 11, 0.5])
    assert Decay(decay=0.99).beta(10**9, BATCH) == 0.99


def test_the_default_for_sampling_looks_back_farthest():
    """Of exponential averages the longest, whatever they are counted in; power averages only where there is none."""
    short, long = Decay(decay=0.9), HalfLife(half_life=1000)
    assert longest([short, long, Power()], BATCH) is long
    assert longest([HalfLife(half_life=5), Decay(decay=0.9999)], BATCH) == Decay(decay=0.9999)
    assert longest([Power(width=0.05), Power(width=0.1)], BATCH) == Power(width=0.1)
    assert longest([], BATCH) is None


def kept(count=8, widths=(0.05, 0.10)):
    return [Snapshot(gamma_of(w), STEPS * BATCH * (i + 1) / count) for i in range(count) for w in widths]


@pytest.mark.parametrize(
    ("width", "error"), [(0.05, 1e-9), (0.10, 1e-9), (0.075, 0.013), (0.15, 0.03), (0.20, 0.08), (0.03, 0.10)]
)
def test_rebuilt_profiles_have_their_stated_errors(width, error):
    """Eight times two profiles: exact at those kept, 1.3 % at 0.075, 3 % at 0.15, 8 % at 0.20, 10 % at 0.03."""
    wanted = Snapshot(gamma_of(width), STEPS * BATCH)
    coefficients = posthoc(kept(), wanted)
    assert coefficients.sum() == pytest.approx(1)
    found = distance(coefficients, kept(), wanted)
    assert found == pytest.approx(error, rel=0.15, abs=1e-6)


@pytest.mark.parametrize("width", [0.05, 0.075, 0.12])
def test_posthoc_rebuilds_a_tracked_average(width):
    """The average rebuilt from snapshots of two others is that of a third, tracked directly, to its profile's error."""
    rng = np.random.default_rng(0)
    path = np.sin(np.linspace(0, 5, STEPS)) + 0.3 * rng.standard_normal(STEPS)
    sets = [
        {"w": torch.tensor([track(Power(width=w), path, STEPS * (i + 1) // 8)], dtype=torch.float64)}
        for i in range(8)
        for w in (0.05, 0.10)
    ]
    rebuilt = combine(posthoc(kept(), Snapshot(gamma_of(width), STEPS * BATCH)), sets)
    direct = track(Power(width=width), path)
    assert float(rebuilt["w"]) == pytest.approx(direct, abs=0.02 if width != 0.05 else 1e-6)


def test_the_profile_of_a_power_average_is_what_steps_give():
    """The closed form of the inner product is the sum over steps of two recursions' profiles."""
    from snrkit.training.ema import _product

    def profile(gamma, steps):
        edges = np.arange(steps + 1) / steps
        return np.concatenate([np.diff(edges ** (gamma + 1)), np.zeros(STEPS - steps)]) * STEPS / (STEPS * BATCH)

    for a, b, until in ((16.97, 6.94, 1200), (6.94, 16.97, 700), (6.94, 6.94, 2000)):
        one, other = Snapshot(a, until * BATCH), Snapshot(b, STEPS * BATCH)
        by_steps = (profile(a, until) * profile(b, STEPS)).sum() * BATCH
        assert _product(one, other) == pytest.approx(by_steps, rel=2e-2)
        assert _product(one, other) == pytest.approx(_product(other, one), rel=1e-12)


def test_geometric_average_is_not_a_power_one():
    """beta^(N - i) has a fixed absolute window: relative width 0.0095 of 1000 at 0.9; 1 is the plain mean."""
    coefficients = geometric(1000, 0.9)
    tau = (np.arange(1000) + 1) / 1000
    spread = np.sqrt(coefficients @ tau**2 - (coefficients @ tau) ** 2)
    assert spread == pytest.approx(0.0095, abs=2e-4)
    assert geometric(4, 1.0).tolist() == [0.25] * 4


def test_combine_is_linear_and_leaves_counters():
    """Floating tensors are summed in float64 and keep their dtype; integers are the last set's."""
    sets = [{"w": torch.full((2,), float(i)), "n": torch.tensor(i)} for i in (1, 2, 4)]
    found = combine([0.5, -0.25, 0.75], sets)
    assert found["w"].dtype == torch.float32
    assert found["w"].tolist() == [3.0, 3.0]
    assert found["n"] == 4
