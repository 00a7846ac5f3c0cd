"""Jobs at the same time on threads; who asks for them works, too, and never waits for a thread."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from threading import Lock
from typing import TypeVar

T = TypeVar("T")


def run_all(
    threads: ThreadPoolExecutor, jobs: Sequence[Callable[[], T]], on_error: Callable[[], None]
) -> list[T]:
    """Run jobs at the same time and return their results in order.

    Jobs may do the same on the same threads: what no thread has begun when its result is due is
    done here, so that nobody waits but for what runs. Once one has failed none is begun any more;
    ``on_error`` is called once, and the error raised when all that run have ended.
    """
    errors: list[BaseException] = []
    is_told = Lock()

    def stop(error: BaseException) -> None:
        errors.append(error)
        if is_told.acquire(blocking=False):
            on_error()

    def run(job: Callable[[], T]) -> T:
        if errors:
            raise errors[0]
        try:
            return job()
        except BaseException as error:
            stop(error)
            raise

    first, *others = jobs
    futures: list[Future[T]] = []
    try:
        for job in others:
            futures.append(threads.submit(run, job))
        found = [run(first)]
        for job, future in zip(others, futures, strict=True):
            found.append(run(job) if future.cancel() else future.result())
        return found
    except BaseException as error:
        stop(error)
        for future in futures:
            future.cancel()
        wait(futures)  # they use connections that the caller is about to give back
        raise
