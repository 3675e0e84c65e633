"""Signs of life of the processes of a group, so that one that was killed, stopped or cut off is not waited for.

Every second each process writes a sign into the store by which the group met, and reads those of the others: a number
that rises, whether it was asked to stop, and in the end its exit code. A process that works gives signs, however long
the others wait for it; one that gives none for as long as the patience of the group is lost, and the others end with a
sentence that names it. They end where they are, as killed processes do, which leaves every file whole or absent.

Time is counted in this process's own seconds at work, so that a group that was suspended as a whole goes on.
"""

import contextlib
import os
import platform
import threading
import time
from dataclasses import dataclass
from typing import Protocol

from snrkit.base.background import finish
from snrkit.base.errors import SnrkitError, Stopped
from snrkit.base.signals import GO_ON, INTERRUPTED

VARIABLE = "SNRKIT_PATIENCE"
PATIENCE, SHORTEST, LONGEST = 60, 2, 86_400  # seconds
ARRIVAL = 600  # seconds within which a process gives its first sign
GRACE = 5  # seconds within which a process notices by itself that another has ended, or is silent
SEEN = 32  # characters of a machine's name
PARTS = 10  # of a second


class Store(Protocol):
    """What processes read and write together."""

    def set(self, key: str, value: str, /) -> object:
        """Write."""

    def get(self, key: str, /) -> bytes:
        """Read what is there."""

    def check(self, keys: list[str], /) -> bool:
        """Whether all are there."""


@dataclass(frozen=True, slots=True)
class Sign:
    """What a process says of itself."""

    count: int
    asked: bool  # to stop
    code: int | None  # with which it ends
    where: str  # its number in the system, and its machine

    def text(self) -> str:
        """As it stands in the store."""
        return f"{self.count} {int(self.asked)} {'-' if self.code is None else self.code} {self.where}"


def read_sign(text: str) -> Sign:
    """The sign of a text. ValueError where it is none."""
    count, asked, code, where = text.split(" ", 3)
    return Sign(int(count), asked == "1", None if code == "-" else int(code), where)


def patience() -> int:
    """Seconds without a sign after which a process is lost, by the environment. SnrkitError where that is no such."""
    text = os.environ.get(VARIABLE, str(PATIENCE))
    if not text.isascii() or not text.isdigit() or len(text) > 9 or not SHORTEST <= int(text) <= LONGEST:
        raise SnrkitError(f"{VARIABLE}={text}: give whole seconds, from {SHORTEST} to {LONGEST}, or leave it out.")
    return int(text)


class Peers:
    """The other processes of a group, as this one knows them."""

    def __init__(self, store: Store, rank: int, size: int, bear: int) -> None:
        """`bear`: seconds of silence."""
        self._store, self._rank, self._bear = store, rank, bear
        self._others = [other for other in range(size) if other != rank]
        self._signs: dict[int, Sign] = {}
        self._heard = dict.fromkeys(self._others, 0)  # when a sign last changed
        self._now = self._exchanged = self._count = 0
        self._asked = self._cut = False
        self._code: int | None = None
        self._ended = threading.Event()

    def ask_to_stop(self) -> None:
        """Have the others know that this process was asked to stop."""
        self._asked = True

    @property
    def asked(self) -> bool:
        """Whether another process was."""
        return any(sign.asked for sign in list(self._signs.values()))

    def exchange(self) -> None:
        """Give a sign, and read those of the others."""
        self._count += 1
        where = f"{os.getpid()} on {platform.node()[:SEEN]}"
        self._store.set(_key(self._rank), Sign(self._count, self._asked, self._code, where).text())
        for other in self._others:
            if self._store.check([_key(other)]):
                with contextlib.suppress(ValueError):
                    sign = read_sign(self._store.get(_key(other)).decode())
                    if sign != self._signs.get(other):
                        self._signs[other], self._heard[other] = sign, self._now
        self._exchanged = self._now

    def second(self) -> None:
        """A second of this process has passed."""
        self._now += 1

    def lost(self, bear: int, grace: int) -> SnrkitError | Stopped | None:
        """Why to wait for the others no longer, if there is a reason.

        One has ended otherwise than well, `grace` seconds ago, or has been silent for more than `bear` seconds.
        """
        for rank, sign in sorted(self._signs.items()):
            if sign.code and self._now - self._heard[rank] >= grace:
                return _has_ended(_name(rank, sign), sign.code)
        if (silence := self._now - self._exchanged) > bear:  # of what keeps the signs
            keeper = "torchrun" if self._rank == 0 else f"{_name(0, self._signs.get(0))}, or torchrun,"
            return _is_silent(keeper, silence)
        silent = {rank: self._now - self._heard[rank] for rank in self._others if rank not in self._left}
        for rank in sorted(silent, key=lambda rank: -silent[rank]):
            if silent[rank] > (bear if rank in self._signs else max(bear, ARRIVAL)):
                return _is_silent(_name(rank, self._signs.get(rank)), silent[rank])
        return None

    @property
    def _left(self) -> set[int]:
        return {rank for rank, sign in list(self._signs.items()) if sign.code is not None}

    def start(self) -> None:
        """Begin to give signs and to watch for those of the others; a process that is lost ends this one."""
        for work in (self._give_signs, self._watch):
            threading.Thread(target=work, name="snrkit-peers", daemon=True).start()

    def found(self) -> SnrkitError | Stopped | None:
        """Why the group failed, if another process is the reason; after some seconds, in which it shows."""
        self._ended.set()  # what watches says nothing any more
        bear = min(GRACE, self._bear)
        for _ in range(bear + 3):
            self._exchange_within(1)
            if (why := self.lost(bear, 0)) is not None:
                return why
            time.sleep(1)
            self.second()
        return None

    def leave(self, code: int) -> None:
        """Have the others know the exit code."""
        self._code = code
        self._ended.set()
        self._exchange_within(1)

    def see_off(self) -> None:
        """Wait until the others have left, or are lost: of process 0, which may keep the signs of all."""
        bear = GRACE if self._code else self._bear
        while self._rank == 0 and len(self._left) < len(self._others) and self.lost(bear, bear) is None:
            for _ in range(PARTS):
                time.sleep(1 / PARTS)
                self._exchange_within(1)
            self.second()

    def _exchange_within(self, seconds: float) -> None:
        """Exchange, but wait no longer than so for a store that does not answer."""
        last = threading.Thread(target=self._try_exchange, daemon=True)
        last.start()
        last.join(seconds)

    def _try_exchange(self) -> None:
        if self._cut:
            return
        try:
            self.exchange()
        except RuntimeError:  # the store is gone
            self._cut = True

    def _give_signs(self) -> None:
        while not self._ended.is_set():
            self._try_exchange()
            self._ended.wait(1)

    def _watch(self) -> None:
        while not self._ended.wait(1):
            self.second()
            if (why := self.lost(self._bear, GRACE)) is not None:
                finish(self._bear)
                if not self._ended.is_set():
                    end_at_once(why)


def end_at_once(why: SnrkitError | Stopped) -> None:
    """Say why, and end the process where it is: it may wait inside a library that nothing else wakes."""
    code, text = (why.code, str(why)) if isinstance(why, Stopped) else (1, f"snrkit: {why}")
    with contextlib.suppress(OSError):
        os.write(2, f"{text}\n".encode())
    os._exit(code)


def _key(rank: int) -> str:
    return f"snrkit-sign-{rank}"


def _name(rank: int, sign: Sign | None) -> str:
    return f"process {rank} of the group" + ("" if sign is None else f" ({sign.where})")


def _is_silent(name: str, seconds: int) -> SnrkitError:
    return SnrkitError(
        f"{name} has given no sign of life for {seconds} seconds: it was killed or stopped, or its machine is out of "
        "reach. What was saved is whole; end what is left of the group and run the same command again."
    )


def _has_ended(name: str, code: int) -> SnrkitError | Stopped:
    if code in (GO_ON, INTERRUPTED):
        return Stopped(f"stopped, as {name} was; what was saved is kept. To go on, run the same command again.", code)
    return SnrkitError(
        f"{name} has ended with an error, which it says itself. What was saved is whole; see to the error and run the "
        "same command again."
    )
