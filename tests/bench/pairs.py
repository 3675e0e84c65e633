"""A ratio against a named baseline: the median over interleaved pairs."""

import statistics
import time
from collections.abc import Callable
from typing import Any


def ratio(
    benchmark: Any,
    ours: Callable[[], Any],
    baseline: Callable[[], Any],
    rounds: int,
    bound: float,
    clock: Callable[[], float] = time.perf_counter,
) -> None:
    """Time both alternately, report the median of ours/baseline over the pairs, and hold it to `bound`."""
    ours()
    baseline()
    times = [[], []]
    for count in range(rounds):
        pair = list(zip(times, (ours, baseline), strict=True))
        for kept, run in pair if count % 2 else reversed(pair):  # each goes first as often, against drift
            begin = clock()
            run()
            kept.append(clock() - begin)
    pairs = sorted(a / b for a, b in zip(*times, strict=True))
    found = statistics.median(pairs)
    low, high = pairs[len(pairs) // 4], pairs[-len(pairs) // 4]
    benchmark.extra_info.update(ratio=found, quartiles=(low, high), bound=bound)
    benchmark.pedantic(ours, rounds=1)
    print(f"\n{benchmark.name}: ratio {found:.4f} (pairs' quartiles {low:.4f}, {high:.4f}), bound {bound}")
    assert found <= bound
