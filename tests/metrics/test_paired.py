"""Paired differences, and what is left of many of them."""

import numpy as np
import pytest
from scipy.special import stdtrit
from scipy.stats import ttest_rel

from snrkit.metrics.paired import Difference, against, holm, p_value, verdict


def test_the_p_value_is_scipy_s():
    """Of the paired t-test, recovered from the interval."""
    rng = np.random.default_rng(0)
    for count in (2, 5, 12):
        a, b = rng.normal(size=count), rng.normal(0.3, 1, size=count)
        assert p_value(against(a, b), count) == pytest.approx(ttest_rel(a, b).pvalue, rel=1e-9)
    assert p_value(against([1.0, 2.0], [1.0, 2.0]), 2) == 1
    assert p_value(against([1.0, 2.0], [0.0, 1.0]), 2) == 0


def test_holm_steps_down():
    """The k-th smallest of m is held to 5 %/(m - k + 1), until one fails; what has no interval is not asked."""

    def of(p):  # a difference of mean 1 over five pairs with this p-value
        half = float(stdtrit(4, 0.975) / stdtrit(4, 1 - p / 2))
        return Difference(1.0, 1 - half, 1 + half)

    asked = {"a": of(0.04), "b": of(0.012), "c": of(0.024), "d": Difference(1.0, None, None)}
    assert holm(asked, 5) == ("b", "c", "a")
    assert holm({**asked, "e": of(0.2)}, 5) == ("b",)
    assert holm({"a": of(0.06)}, 5) == ()


def test_it_keeps_its_promise_where_nothing_differs():
    """Of 2,000 families of seven true nulls at most one in twenty names any, but for the error of so many."""
    rng = np.random.default_rng(1)
    wrong = 0
    for _ in range(2000):
        draws = rng.normal(size=(8, 5))
        wrong += bool(holm({str(k): against(row, draws[0]) for k, row in enumerate(draws[1:])}, 5))
    assert wrong / 2000 < 0.05 + 3 * (0.05 * 0.95 / 2000) ** 0.5


@pytest.mark.parametrize(("low", "high", "said"), [
    (-0.4, 0.3, "equal within the margin"), (-0.6, 0.3, "no difference shown"), (-0.4, 0.5, "no difference shown"),
    (-0.3, -0.1, "better"), (0.1, 0.3, "worse"),
])  # fmt: skip
def test_equality_needs_a_margin_and_the_whole_interval_within(low, high, said):
    """What clears 0 differs, however little; without a margin nothing is equal."""
    found = Difference((low + high) / 2, low, high)
    assert verdict(found, margin=0.5) == said
    assert verdict(found) == said.replace("equal within the margin", "no difference shown")


def test_two_that_differ_by_the_margin_are_called_equal_in_one_of_forty_at_most():
    """The level of the test on the side where the truth lies: 2.5 %, over 4,000 sets of eight ranges."""
    rng = np.random.default_rng(0)
    draws = rng.normal(0.3, 0.3, (4000, 8)).tolist()
    wrong = sum(verdict(against(row, [0.0] * 8), margin=0.3) == "equal within the margin" for row in draws)
    assert 0 < wrong <= 0.025 * 4000 + 3 * (0.025 * 0.975 * 4000) ** 0.5
