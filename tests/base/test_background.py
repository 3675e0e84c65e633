"""What is handed to the background is done in order, one at a time, and its errors are not lost."""

import threading
import time

import pytest

from snrkit.base.background import Background


def test_jobs_are_done_in_order_one_at_a_time_by_another_thread():
    """All of them by the end of the block."""
    done, at_work = [], threading.Lock()

    def job(number):
        with at_work:
            time.sleep(0.002)
            done.append((number, threading.current_thread() is threading.main_thread()))

    with Background() as background:
        for number in range(6):
            background.do(lambda number=number: job(number))
            assert len(done) >= number  # all but this one
    assert done == [(number, False) for number in range(6)]


@pytest.mark.parametrize("when", ["do", "wait", "end"])
def test_an_error_is_raised_at_the_next_occasion(when):
    """Of the next job, of waiting, of the block's end; and once."""

    def fails():
        raise OSError("full")

    def run():
        with Background() as background:
            background.do(fails)
            if when == "do":
                background.do(lambda: after.append(1))
            if when == "wait":
                background.wait()

    after = []
    with pytest.raises(OSError, match="full"):
        run()
    assert after == []


def test_an_error_of_the_block_is_what_is_raised():
    """But what was begun is done first."""
    done = []

    def slow():
        time.sleep(0.02)
        done.append(1)

    def run():
        with Background() as background:
            background.do(slow)
            raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"):
        run()
    assert done == [1]
