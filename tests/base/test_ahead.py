"""Work done ahead in threads is the work done one after the other: the same results, errors and order."""

import threading
import time

import pytest

from snrkit.base.ahead import MOST, ahead, behind, threads


@pytest.mark.parametrize("workers", [0, 1, 2, 5])
@pytest.mark.parametrize("count", [0, 1, 3, 40])
def test_results_come_in_order(workers, count):
    """Whatever each takes."""

    def make(key):
        time.sleep(0.001 * (key * 7 % 4))
        return key * key

    assert list(ahead(make, range(count), workers)) == [key * key for key in range(count)]


@pytest.mark.parametrize("workers", [1, 3])
def test_no_more_is_begun_than_was_said(workers):
    """Of workers + 1 keys, and one more for each result that was taken; keys are gone through by who iterates."""
    asked, callers = [], set()

    def keys():
        for key in range(100):
            asked.append(key)
            callers.add(threading.current_thread())
            yield key

    found = ahead(lambda key: key, keys(), workers)
    for taken in range(1, 10):
        next(found)
        assert len(asked) == workers + 1 + taken
    found.close()
    assert callers == {threading.current_thread()}


def test_an_error_stands_in_its_place():
    """What comes before it is given first."""

    def make(key):
        if key == 2:
            raise ValueError("two")
        return key

    found = ahead(make, range(9), 3)
    assert [next(found), next(found)] == [0, 1]
    with pytest.raises(ValueError, match="two"):
        next(found)


def test_closing_drops_what_was_begun():
    """Nothing is made afterwards, and no thread is left."""
    made = []
    found = ahead(made.append, range(1000), 2)
    next(found)
    found.close()
    before = len(made)
    assert before <= 5
    assert [each for each in threading.enumerate() if each.name.startswith("snrkit-ahead")] == []
    assert len(made) == before


def test_nothing_is_made_by_who_iterates():
    """But by threads of their own."""
    found = set(ahead(lambda _: threading.current_thread(), range(20), 2))
    assert threading.current_thread() not in found
    assert 1 <= len(found) <= 2


def test_processes_share_the_threads_of_a_machine(monkeypatch):
    """Some for each, and one at least."""
    monkeypatch.setattr("os.cpu_count", lambda: 6)
    assert [threads(count) for count in (1, 2, 6, 50)] == [MOST, 3, 1, 1]


def test_what_is_behind_is_given_when_the_next_has_been_made():
    """All of it, in order."""
    made = []

    def items():
        for item in range(4):
            made.append(item)
            yield item

    for item in behind(items()):
        assert made == list(range(min(item + 2, 4)))
    assert list(behind([])) == []
    assert list(behind("abc")) == ["a", "b", "c"]
