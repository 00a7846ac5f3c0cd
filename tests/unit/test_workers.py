"""Jobs at the same time on threads: any depth of them ends, and a failure ends them all."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from toolkit.drivers.workers import run_all


def test_jobs_that_ask_for_jobs_end_however_few_threads_there_are() -> None:
    threads = ThreadPoolExecutor(2)

    def count(depth: int) -> int:
        if not depth:
            return 1
        return sum(run_all(threads, [lambda: count(depth - 1)] * 3, lambda: None))

    found: list[int] = []
    askers = [
        threading.Thread(target=lambda: found.append(count(4)), daemon=True) for _ in range(4)
    ]
    for asker in askers:
        asker.start()
    for asker in askers:
        asker.join(10)
    threads.shutdown(cancel_futures=True)  # who hangs is told
    assert found == [81] * 4


def test_results_come_in_the_jobs_order_and_all_run_at_once() -> None:
    meeting = threading.Barrier(4, timeout=10)

    def met(number: int) -> int:
        meeting.wait()
        return number

    with ThreadPoolExecutor(3) as threads:
        jobs = [lambda n=n: met(n) for n in range(4)]  # type: ignore[misc]
        assert run_all(threads, jobs, lambda: None) == [0, 1, 2, 3]


@pytest.mark.parametrize("failing", range(3))
def test_after_a_failure_nothing_is_begun_and_it_is_told_once(failing: int) -> None:
    said: list[str] = []
    meeting, is_told = threading.Barrier(3, timeout=10), threading.Event()

    def tell() -> None:
        said.append("told")
        is_told.set()

    def job(number: int) -> None:
        meeting.wait()
        if number == failing:
            raise ValueError("no")
        is_told.wait(10)
        said.append("ended")

    jobs = [lambda n=n: job(n) for n in range(9)]  # type: ignore[misc]
    with ThreadPoolExecutor(2) as threads, pytest.raises(ValueError, match="no"):
        run_all(threads, jobs, tell)
    assert said == ["told", "ended", "ended"]
