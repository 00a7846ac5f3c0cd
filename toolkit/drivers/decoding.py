"""Threads that decode: as many as there is work for, up to a bound; none where there is none."""

from __future__ import annotations

import logging
import os
from collections import deque
from collections.abc import Callable, Sequence
from threading import Condition, Event, Lock, Thread, current_thread
from typing import Any, TypeVar
from weakref import ref

T = TypeVar("T")
_log = logging.getLogger("toolkit.drivers")
_JOIN_S = 5.0


class DecodePool:
    """Runs plain functions that let go of the interpreter's lock; threads may share it.

    A thread is started when jobs wait and fewer than ``most`` run; one that finds nothing to do
    for ``idle`` seconds ends, down to ``least``. A forked child begins without threads. Sharing
    costs a call some 10 µs, and 100 where it starts a thread: small jobs belong together.
    """

    def __init__(self, least: int = 0, most: int | None = None, idle: float = 30.0) -> None:
        self.least, self.most, self.idle = least, _cores() if most is None else most, idle
        if not 0 <= self.least <= self.most:
            raise ValueError(f"at least {self.least} and at most {self.most} threads")
        self._own_room = _Room(self)

    def run(self, jobs: Sequence[Callable[[], T]]) -> list[T]:
        """Return the results in the jobs' order; the caller's own thread works along.

        Who calls at the same time, or from within a job, shares the threads: each in turn. Once
        a job fails no other of ``jobs`` begins, and when all that had begun are done the first
        one's error, in their order, is raised.
        """
        room = self._room()
        if len(jobs) < 2 or not self.most:
            results = [job() for job in jobs]
            room.count(len(results))
            return results
        batch = _Batch(jobs)
        room.offer(batch)
        try:
            while (index := room.begin(batch)) is not None:
                room.do(batch, index)
            batch.is_done.wait()
        finally:
            room.withdraw(batch)  # interrupted: nobody wants what has not begun
        if batch.failed is None:
            return batch.results
        (_, error), batch.failed = batch.failed, None
        try:
            raise error
        finally:
            del error  # its traceback holds this frame

    def close(self) -> None:
        """End the threads, each after the job it runs; a later :meth:`run` starts others."""
        room, self._own_room = self._room(), _Room(self)
        room.end()

    def stats(self) -> dict[str, int]:
        """Return threads, those at work, jobs nobody has begun, and jobs done, callers' included.

        What was done is counted anew after :meth:`close`, and in a forked child.
        """
        return self._room().stats()

    def _room(self) -> _Room:
        if self._own_room.owner != os.getpid():
            # its lock and its threads are the parent's: leave them alone
            self._own_room = _Room(self)
        return self._own_room


class _Batch:
    """The jobs of one caller; all but the results is guarded by the room's lock."""

    def __init__(self, jobs: Sequence[Callable[[], Any]]) -> None:
        self.jobs = jobs
        self.results: list[Any] = [None] * len(jobs)
        self.begun = 0
        self.running = 0
        self.failed: tuple[int, BaseException] | None = None
        self.is_done = Event()

    @property
    def left(self) -> int:
        """How many jobs nobody has begun."""
        return len(self.jobs) - self.begun


class _Room:
    """The threads of one process and what they share; a pool that is forgotten ends them."""

    def __init__(self, pool: DecodePool) -> None:
        self.owner = os.getpid()
        self._pool = ref(pool)
        self._least, self._most, self._idle = pool.least, pool.most, pool.idle
        self._lock = Lock()
        self._work_is_there = Condition(self._lock)
        self._batches: deque[_Batch] = deque()
        self._threads: set[Thread] = set()
        self._resting = 0
        self._done = 0
        self._is_over = False

    def stats(self) -> dict[str, int]:
        with self._lock:
            return {
                "decode_threads": len(self._threads),
                "decode_busy": len(self._threads) - self._resting,
                "decode_waiting": self._waiting(),
                "decode_jobs": self._done,
            }

    def offer(self, batch: _Batch) -> None:
        """Let threads take part in a batch, of which its caller does one job itself."""
        with self._lock:
            self._batches.append(batch)
            wanted = self._waiting() - 1
            self._work_is_there.notify(wanted)
            missing = min(wanted - self._resting, self._most - len(self._threads))
            started = [self._make_thread() for _ in range(missing)]
        for at, thread in enumerate(started):
            try:
                thread.start()
            except RuntimeError as error:
                _log.info("no thread for decoding, callers work alone: %s", error)
                with self._lock:
                    self._threads.difference_update(started[at:])
                return

    def count(self, done: int) -> None:
        """Count what a caller did alone."""
        with self._lock:
            self._done += done

    def begin(self, batch: _Batch) -> int | None:
        """Return the batch's next job, or None when all have begun."""
        with self._lock:
            return self._begin(batch) if batch.left else None

    def do(self, batch: _Batch, index: int) -> None:
        """Run one job that has begun, and tell its caller when it was the last."""
        error: BaseException | None = None
        try:
            batch.results[index] = batch.jobs[index]()
        except BaseException as raised:  # its caller's, whoever ran it
            error = raised
        with self._lock:
            self._done += 1
            batch.running -= 1
            if error is not None:
                if batch.failed is None or index < batch.failed[0]:
                    batch.failed = index, error
                self._drop(batch)
            if not batch.running and not batch.left:
                batch.is_done.set()
        del error  # its traceback holds this frame

    def withdraw(self, batch: _Batch) -> None:
        """Begin no other job of a batch."""
        with self._lock:
            self._drop(batch)

    def end(self) -> None:
        """End the threads, and wait for them."""
        with self._lock:
            self._is_over = True
            self._work_is_there.notify_all()
            threads = [thread for thread in self._threads if thread.ident is not None]
        for thread in threads:
            if thread is not current_thread():
                thread.join(_JOIN_S)

    def _make_thread(self) -> Thread:
        thread = Thread(target=self._work, name="toolkit-decode", daemon=True)
        self._threads.add(thread)
        return thread

    def _work(self) -> None:
        while (turn := self._turn()) is not None:
            self.do(*turn)
            del turn  # a thread that rests holds nobody's values

    def _turn(self) -> tuple[_Batch, int] | None:
        """Return the next job of the batch whose turn it is; None ends the thread."""
        with self._lock:
            while not self._is_over:
                if self._batches:
                    batch = self._batches[0]
                    self._batches.rotate(-1)
                    return batch, self._begin(batch)
                if not self._rest():
                    break
            self._threads.discard(current_thread())
            return None

    def _rest(self) -> bool:
        """Wait for work; tell whether the thread shall stay."""
        self._resting += 1
        has_heard = self._work_is_there.wait(self._idle)
        self._resting -= 1
        least = self._least if self._pool() else 0
        return has_heard or bool(self._batches) or len(self._threads) <= least

    def _waiting(self) -> int:
        return sum(batch.left for batch in self._batches)

    def _begin(self, batch: _Batch) -> int:
        batch.begun += 1
        batch.running += 1
        if not batch.left:
            self._batches.remove(batch)
        return batch.begun - 1

    def _drop(self, batch: _Batch) -> None:
        if batch.left:
            batch.begun = len(batch.jobs)
            self._batches.remove(batch)


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):  # those this process may use
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
