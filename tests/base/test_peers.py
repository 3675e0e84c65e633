"""Processes of a group know of each other who is at work, who was asked to stop, who ended and who is lost."""

import threading

import pytest

from snrkit.base.background import Background, finish
from snrkit.base.errors import SnrkitError, Stopped
from snrkit.base.peers import ARRIVAL, GRACE, PATIENCE, VARIABLE, Peers, Sign, patience, read_sign

BEAR = 20


class Store(dict):
    """What processes read and write together, in one process."""

    def set(self, key, value):
        self[key] = value.encode()

    def get(self, key):
        return self[key]

    def check(self, keys):
        return all(key in self for key in keys)


class Gone:
    """A store whose keeper is no more."""

    def set(self, key, value):
        raise RuntimeError("Connection reset by peer")


class Silent:
    """A store that never answers."""

    def __init__(self):
        self.asked = threading.Event()
        self.answer = threading.Event()

    def set(self, key, value):
        self.asked.set()
        self.answer.wait(60)
        raise RuntimeError("timeout")


def group(size=2, store=None):
    store = Store() if store is None else store
    found = [Peers(store, rank, size, BEAR) for rank in range(size)]
    for _ in range(2):
        for peer in found:
            peer.exchange()
    return found


def pass_time(seconds, *working):
    """Seconds in which some processes give signs; each reads what those before it have given."""
    for _ in range(seconds):
        for peer in working:
            peer.second()
            peer.exchange()


def verdict(peer, bear=BEAR, grace=GRACE):
    return peer.lost(bear, grace)


@pytest.mark.parametrize("sign", [Sign(1, False, None, "7 on a"), Sign(10**9, True, 75, "12345 on a machine of ours")])
def test_a_sign_is_read_as_it_was_written(sign):
    """Names of machines hold what they may."""
    assert read_sign(sign.text()) == sign


def test_who_works_is_waited_for_as_long_as_it_takes():
    """A day."""
    first, second = group()
    pass_time(2000, first, second)
    assert verdict(first) is None
    assert verdict(second) is None
    assert verdict(first, bear=2) is None


@pytest.mark.parametrize("rank", [0, 1, 2])
def test_who_gives_no_sign_is_named(rank):
    """By all others, after as long as the group bears and not before; with its process and its machine."""
    peers = group(3)
    pass_time(5, *peers)
    left = [peer for peer in peers if peer is not peers[rank]]
    pass_time(BEAR, *left)
    assert all(verdict(peer) is None for peer in left)
    pass_time(2, *left)
    for peer in left:
        text = str(verdict(peer))
        assert text.startswith(f"process {rank} of the group (")
        assert "run the same command again" in text
        assert "\n" not in text
        assert type(verdict(peer)) is SnrkitError


def test_a_group_that_was_suspended_as_a_whole_goes_on():
    """Seconds are counted by who is at work: one that wakes first has seen none in which the other was silent."""
    first, second = group()
    pass_time(3, first, second)
    first.second()  # hours later, before the other is awake
    assert verdict(first, bear=2) is None
    pass_time(3, first, second)
    assert verdict(first, bear=2) is None


def test_who_never_came_is_given_time_to_start():
    """Imports of torch from a slow disk take longer than a process may be silent."""
    peer = Peers(Store(), 0, 2, BEAR)
    pass_time(ARRIVAL, peer)
    assert verdict(peer) is None
    pass_time(1, peer)
    assert str(verdict(peer)).startswith("process 1 of the group has given no sign")


@pytest.mark.parametrize("code", [0, 1, 2, 75, 130])
def test_how_another_ended_decides_how_we_do(code):
    """Well: nothing. By a signal: as if it were ours, with its code. By an error: an error that points to it."""
    first, second = group()
    second.leave(code)
    pass_time(1, first)
    if code:
        assert verdict(first) is None, "it may notice by itself"
    pass_time(GRACE, first)
    why = verdict(first)
    if code == 0:
        pass_time(10 * BEAR, first)
        assert verdict(first) is None
    elif code in (75, 130):
        assert isinstance(why, Stopped)
        assert why.code == code
        assert "process 1 of the group" in str(why)
    else:
        assert type(why) is SnrkitError
        assert "has ended with an error, which it says itself" in str(why)
    if code:
        assert str(first.found()) == str(why)


def test_what_a_collective_met_is_found_within_seconds():
    """Of a process that was killed a moment ago, whose signs cease; and nobody is blamed where all are at work."""
    first, second = group()
    pass_time(5, first, second)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("time.sleep", lambda seconds: None)
        assert str(first.found()).startswith("process 1 of the group (")
        first, second = group()
        patch.setattr("time.sleep", lambda seconds: second.exchange())
        assert first.found() is None


def test_asking_to_stop_reaches_the_others():
    """And not who asks."""
    first, second, third = group(3)
    assert not any(peer.asked for peer in (first, second, third))
    second.ask_to_stop()
    for peer in (second, first, third):
        peer.exchange()
    assert (first.asked, second.asked, third.asked) == (True, False, True)


def test_a_store_that_is_gone_or_silent_is_its_keepers_loss():
    """Process 0's, or torchrun's; of which only the second is another's to process 0. Nothing waits for it."""
    for store in (Gone(), Silent()):
        for rank, named in ((1, "process 0 of the group, or torchrun, has"), (0, "torchrun has")):
            peer = Peers(store, rank, 2, BEAR)
            peer._exchange_within(0.01)
            for _ in range(BEAR):
                peer.second()
            assert verdict(peer) is None
            peer.second()
            assert str(verdict(peer)).startswith(named)
            peer.leave(1)
        if isinstance(store, Silent):
            store.answer.set()


def test_what_is_no_sign_is_passed_over():
    """Whoever wrote it."""
    store = Store()
    (peer,) = group(1, store)
    peer = Peers(store, 0, 2, BEAR)
    for text in ("", "1", "a b c d", "1 0 x 7 on a", "é"):
        store.set("snrkit-sign-1", text)
        peer.exchange()
    assert verdict(peer) is None
    assert not peer.asked


@pytest.mark.parametrize("text", ["", "0", "1", "-5", "1e3", "90000", "9" * 30, "²", "many"])
def test_a_patience_that_is_none_is_refused(monkeypatch, text):
    """In one sentence, with the variable and what it may be."""
    monkeypatch.setenv(VARIABLE, text)
    with pytest.raises(SnrkitError, match=f"{VARIABLE}=.*from 2 to 86400"):
        patience()


def test_patience_by_the_environment(monkeypatch):
    """A minute, or what is given."""
    monkeypatch.delenv(VARIABLE, raising=False)
    assert patience() == PATIENCE == 60
    monkeypatch.setenv(VARIABLE, "300")
    assert patience() == 300


def test_what_was_begun_is_finished_before_a_process_ends():
    """Of all that is written in the background, for so long at most."""
    going, may_end, done = threading.Event(), threading.Event(), []

    def job():
        going.set()
        may_end.wait(60)
        done.append(1)

    with Background() as background:
        background.do(job)
        going.wait(60)
        finish(0.01)
        assert done == []
        may_end.set()
        finish(60)
        assert done == [1]
    finish(60)
