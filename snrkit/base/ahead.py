"""Work done in threads ahead of the moment that needs its result, in order."""

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

K = TypeVar("K")
T = TypeVar("T")
MOST = 4  # threads beside the main one


def threads(processes: int = 1) -> int:
    """How many threads one of so many processes on this machine may keep busy beside its main one."""
    return max(1, min(MOST, (os.cpu_count() or 1) // processes))


def held_ahead(processes: int = 1) -> int:
    """How many results `ahead` begins before they are asked for, with as many threads as `threads` says."""
    return threads(processes) + 1


def ahead(make: Callable[[K], T], keys: Iterable[K], workers: int) -> Generator[T, None, None]:
    """`make` of every key, in order; `workers` threads begin that of up to `workers` + 1 keys before it is asked for.

    With none, each is made in this thread when it is asked for. `keys` is gone through in the thread that iterates.
    What `make` raises is raised where its result would have been given; what was begun and never asked for is dropped
    when the iterator is closed.
    """
    if not workers:
        yield from map(make, keys)
        return
    left = iter(keys)
    with ThreadPoolExecutor(workers, thread_name_prefix="snrkit-ahead") as pool:
        begun: deque[Future[T]] = deque()
        try:
            begun.extend(pool.submit(make, key) for key in islice(left, workers + 1))
            while begun:
                begun[0].result()
                begun.extend(pool.submit(make, key) for key in islice(left, 1))
                yield begun.popleft().result()  # which nothing here holds while it is used
        finally:
            for future in begun:
                future.cancel()


def behind(items: Iterable[T]) -> Iterator[T]:
    """Every item, in order, when the next one has been made: so that a device is at the next while one is read."""
    last: deque[T] = deque()
    for item in items:
        last.append(item)
        if len(last) > 1:
            yield last.popleft()
    yield from last
