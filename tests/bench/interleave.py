"""Interleaved timing: every arm once per repetition, in an order that is reversed every other time.

An arm's ratio is its time over that of the base arm: the median of the ratios within repetitions, and the
ratio of the two minima beside it. Noise that lasts longer than one repetition hits both arms of a ratio.
Times are CPU seconds of this process, which has one thread: on an idle core that is wall time, and on a
shared machine it leaves the neighbours' turns out.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable
from typing import Any

Arm = Callable[[], Any]


def timed(
    arms: dict[str, Arm], *, repetitions: int, results: dict[str, Any] | None = None
) -> dict[str, list[float]]:
    """CPU seconds of each arm's runs, in the order of repetitions; ``results`` gets what the last ones gave.

    Of three repetitions or more, the first warms up and does not count.
    """
    times: dict[str, list[float]] = {name: [] for name in arms}
    for repetition in range(repetitions):
        names = list(arms) if repetition % 2 == 0 else list(arms)[::-1]
        for name in names:
            gc.collect()
            begin = time.process_time()
            given = arms[name]()
            times[name].append(time.process_time() - begin)
            if results is not None:
                results[name] = given
    return {name: taken[1:] for name, taken in times.items()} if repetitions > 2 else times


def compare(arms: dict[str, Arm], *, base: str, repetitions: int) -> dict[str, Any]:
    """Time arms against ``base``, print a table and return what each arm gave."""
    results: dict[str, Any] = {}
    times = timed(arms, repetitions=repetitions, results=results)
    for name, taken in times.items():
        ratio = statistics.median(t / b for b, t in zip(times[base], taken, strict=True))
        minima = min(taken) / min(times[base])
        print(
            f"  {name:34s} median {statistics.median(taken):7.3f} s  min {min(taken):7.3f} s  "
            f"{ratio:5.2f} times {base} (minima {minima:5.2f})",
            flush=True,
        )
    return results
