"""Sends to a logger from a thread of its own, so that nothing that a logger does or fails to do reaches the run."""

import logging
import threading
from collections.abc import Callable
from queue import Full, Queue

from snrkit.base.errors import reason_of
from snrkit.loggers.logger import OpenedLogger

MOST_WAITING = 10_000  # jobs of a logger that does not keep up
PATIENCE = 120.0  # seconds for what is left at the end

Job = Callable[[OpenedLogger], None]
messages = logging.getLogger("snrkit")


class Sender:
    """One thread that opens a logger, does the jobs that it is handed in order, and closes it.

    The first error is a warning, after which there are no more jobs: nothing is ever raised or waited for but the end,
    and that only for so long.
    """

    def __init__(self, name: str, begin: Callable[[], OpenedLogger], ended: Callable[[], None]) -> None:
        """`name` of the logger in warnings; its thread calls `begin`, which opens it, and `ended` when it is closed."""
        self._name, self._begin, self._ended = name, begin, ended
        self._jobs: Queue[Job | None] = Queue(MOST_WAITING)
        self._broken = self._failed = False
        self._thread = threading.Thread(target=self._work, name=f"snrkit-{name}", daemon=True)
        self._thread.start()

    def do(self, job: Job) -> None:
        """Have a job done after those before it."""
        self._hand(job)

    def close(self, failed: bool) -> None:
        """Wait until all is sent; `failed`: whether the command ended in an error."""
        self._failed = failed
        self._hand(None)
        self._thread.join(PATIENCE)
        if self._thread.is_alive():
            self._give_up(f"it was not done {PATIENCE:.0f} seconds after the end")

    def _hand(self, job: Job | None) -> None:
        if self._broken:
            return
        try:
            self._jobs.put_nowait(job)
        except Full:
            self._give_up(f"it is {MOST_WAITING:,} records behind")

    def _work(self) -> None:
        opened: OpenedLogger | None = None
        try:
            opened = self._begin()
            while not self._broken and (job := self._jobs.get()) is not None:
                job(opened)
        except Exception as error:  # whatever another's package raises
            self._give_up(reason_of(error) or type(error).__name__)
        try:
            if opened is not None:
                opened.close(self._failed)
                self._ended()
        except Exception as error:
            self._give_up(reason_of(error) or type(error).__name__)

    def _give_up(self, why: str) -> None:
        if not self._broken:
            self._broken = True
            messages.warning(f"log ({self._name}): {why}; the run goes on without it, and keeps its own files")
