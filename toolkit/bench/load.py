"""An open load: reads fall due at a fixed rate, and each is timed from when it was due."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import count

Act = Callable[[int], object]


def capacity(act: Act, workers: int, seconds: float) -> float:
    """Return how many acts a second there are at most, by so many threads without pause."""
    over = time.perf_counter() + seconds

    def work(first: int) -> int:
        number = first
        while time.perf_counter() < over:
            act(number)
            number += workers
        return (number - first) // workers

    started = time.perf_counter()
    with ThreadPoolExecutor(workers) as pool:
        done = sum(pool.map(work, range(workers)))
    return done / (time.perf_counter() - started)


def open_load(act: Act, rate: float, workers: int, is_over: Callable[[float], bool]) -> list[float]:
    """Act ``rate`` times a second until it is over; return the ms from when each was due.

    Who finds all threads busy waits, and that counts: nothing is left out because the one before
    was slow. ``is_over`` hears how many seconds it has lasted.
    """
    numbers, times = count(), list[float]()
    started = time.perf_counter()

    def work(worker: int) -> None:
        for number in numbers:  # next() of a count is one step, so threads may share it
            due = number / rate
            if is_over(due):
                return
            if (early := started + due - time.perf_counter()) > 0:
                time.sleep(early)
            act(number)
            times.append((time.perf_counter() - started - due) * 1000)

    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(work, range(workers)))
    return times
