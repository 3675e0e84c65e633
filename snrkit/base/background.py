"""Work that is handed to a thread while the caller goes on."""

import contextlib
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from types import TracebackType

_at_work: set[Future[None]] = set()


def finish(seconds: float) -> None:
    """Wait until what any Background has begun is done, for so long at most: before a process ends where it is."""
    wait(list(_at_work), seconds)


class Background:
    """One thread that does what it is handed, in order and one thing at a time. A context, whose end waits for it.

    What a job raises is raised by the next `do`, by `wait`, or by the end of the block, but where the block itself ends
    in an error.
    """

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="snrkit-background")
        self._begun: Future[None] | None = None

    def do(self, job: Callable[[], None]) -> None:
        """Begin a job, after the one before has ended."""
        self.wait()
        self._begun = self._pool.submit(job)
        _at_work.add(self._begun)
        self._begun.add_done_callback(_at_work.discard)

    def wait(self) -> None:
        """Until all is done."""
        if self._begun is not None:
            begun, self._begun = self._begun, None
            begun.result()

    def __enter__(self) -> "Background":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._pool:
            if kind is None:
                self.wait()
            else:
                with contextlib.suppress(Exception):
                    self.wait()
