"""Planted errors are read with their sign and size, and intervals hold the truth as often as they say."""

from collections import defaultdict

import numpy as np
import pytest

from tests.shift.planted import CASES, trials, truths

REPEATS = 5  # of each case; python -m tests.shift.planted makes more


@pytest.fixture(scope="module")
def found():
    """(truths, readings of every repeat) by case."""
    return {name: (truths(case), list(trials(case, REPEATS))) for name, case in CASES.items()}


def test_a_planted_error_is_read_with_its_size(found):
    """The mean over repeats lies within four of its standard errors, of which the intervals say the size."""
    for name, (true, repeats) in found.items():
        for reading, value in true.items():
            numbers = [each[reading] for each in repeats]
            error = np.mean([number.high - number.low for number in numbers]) / 2 / 1.96 / len(numbers) ** 0.5
            assert abs(np.mean([number.value for number in numbers]) - value) < 4 * error + 1e-3, (name, reading)


def test_the_largest_errors_are_shown_with_their_sign(found):
    """What is several times as large as an interval's half is on the right side of 0 in every repeat."""
    shown = 0
    for name, (true, repeats) in found.items():
        for reading, value in true.items():
            half = np.mean([each[reading].high - each[reading].low for each in repeats]) / 2
            if abs(value) > 3 * half:
                shown += 1
                assert all(np.sign(each[reading].value) == np.sign(value) for each in repeats), (name, reading)
    assert shown >= 10


def test_intervals_hold_the_truth_as_often_as_they_say(found):
    """All cases together: each reading in 21 of 30 repeats at least, all of them in nine tenths."""
    held = defaultdict(list)
    for true, repeats in found.values():
        for reading, value in true.items():
            held[reading] += [each[reading].low - 1e-3 <= value <= each[reading].high + 1e-3 for each in repeats]
    assert min(sum(each) for each in held.values()) >= 21
    assert np.mean([inside for each in held.values() for inside in each]) > 0.9
