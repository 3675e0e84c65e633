"""Signals that ask snrkit to end, and the exit codes by which whoever started it knows what became of it.

    SIGINT (ctrl-C)             130, INTERRUPTED: a person stopped it
    SIGTERM, SIGHUP, SIGUSR1     75, GO_ON: all is saved, and the same command goes on; a scheduler may requeue on it

Three kinds of time, each with its own answer. While commands start (`end_at_once`) nothing is written, and the process
ends where it is. While one works (`ending`) the signal is an exception, which leaves every file whole or absent. In a
loop that saves as it goes (`stoppable`) it is a flag, and the loop ends after its step. A signal that is ignored when
snrkit starts, as SIGHUP is under nohup, stays ignored.
"""

import contextlib
import os
import signal
from collections.abc import Callable, Iterator
from types import FrameType
from typing import NoReturn

from snrkit.base.errors import Stopped

INTERRUPTED = 130
GO_ON = 75  # EX_TEMPFAIL of sysexits.h
FINISHED = "what was finished"
ASKING = tuple(getattr(signal, s) for s in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1") if hasattr(signal, s))

Handler = Callable[[int, FrameType | None], object]


class Asked(KeyboardInterrupt):
    """A signal that arrived while a command works."""

    def __init__(self, signum: int) -> None:
        super().__init__()
        self.code = code_of(signum)


def code_of(signum: int) -> int:
    """The exit code that answers a signal."""
    return INTERRUPTED if signum == signal.SIGINT else GO_ON


def handle(handler: Handler) -> dict[int, Handler | int | None]:
    """Have `handler` answer the signals that ask us to end; returns what answered before.

    SIGINT is answered even where it is ignored, as in what a script starts in the background.
    """
    before: dict[int, Handler | int | None] = {}
    for signum in ASKING:
        found = signal.getsignal(signum)
        if signum == signal.SIGINT or found != signal.SIG_IGN:
            before[signum] = found
            signal.signal(signum, handler)
    return before


@contextlib.contextmanager
def _handled(handler: Handler) -> Iterator[None]:
    before = handle(handler)
    try:
        yield
    finally:
        for signum, answer in before.items():
            signal.signal(signum, signal.SIG_DFL if answer is None else answer)


def end_at_once(signum: int, frame: FrameType | None) -> NoReturn:
    """End the process where it is: an exception would be lost, or misread, in the import of an extension."""
    _end(signum, _text(FINISHED))


def _end(signum: int, text: str) -> NoReturn:
    with contextlib.suppress(OSError):
        clear = "\r\x1b[2K" if os.isatty(2) else ""  # a bar that is being drawn
        os.write(2, f"{clear}{text}\n".encode())
    os._exit(code_of(signum))


def _text(kept: str) -> str:
    return f"stopped; {kept} is kept. To go on, run the same command again."


@contextlib.contextmanager
def ending_at_once(text: str) -> Iterator[None]:
    """Within the block a signal ends the process where it is, with these words: while nothing is written."""
    with _handled(lambda signum, _: _end(signum, text)):
        yield


def _only_once(signum: int) -> None:
    """Have a second ctrl-C end the process at once, and ignore what schedulers, and torchrun, send a second time."""
    again = signal.SIG_DFL if signum == signal.SIGINT and "TORCHELASTIC_RUN_ID" not in os.environ else signal.SIG_IGN
    signal.signal(signum, again)


class Stop:
    """Whether a signal asked us to stop, and with which exit code we shall."""

    def __init__(self) -> None:
        self.asked, self.code = False, GO_ON  # what a peer was asked for and we were not is saved all the same

    def ask(self, signum: int, frame: FrameType | None) -> None:
        """Handle a signal."""
        self.asked, self.code = True, code_of(signum)
        _only_once(signum)


@contextlib.contextmanager
def stoppable() -> Iterator[Stop]:
    """Within the block signals set a flag instead of ending the process."""
    stop = Stop()
    with _handled(stop.ask):
        yield stop


@contextlib.contextmanager
def ending(kept: str = FINISHED, text: str | None = None) -> Iterator[None]:
    """Within the block a signal ends the command: Stopped says what is `kept`, or the whole `text`."""
    asked: list[int] = []
    said = _text(kept) if text is None else text

    def ask(signum: int, frame: FrameType | None) -> None:
        _only_once(signum)
        asked.append(signum)
        raise Asked(signum)

    with _handled(ask):
        try:
            yield
        except KeyboardInterrupt as found:
            raise Stopped(said, found.code if isinstance(found, Asked) else INTERRUPTED) from None
        except Exception:  # what a library made of the signal
            if not asked:
                raise
            raise Stopped(said, code_of(asked[0])) from None
