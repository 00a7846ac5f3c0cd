"""The decode pool: it grows with the work, rests without it, and loses no job, whoever calls."""

from __future__ import annotations

import gc
import os
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier, Event, Thread
from typing import Any

import numpy as np
import pytest

from toolkit import blocks
from toolkit.drivers.decoding import DecodePool

WAIT = 20.0  # seconds: only a failure takes so long
SOON = 0.02


@pytest.fixture
def pool() -> Iterator[DecodePool]:
    pool = DecodePool(most=3, idle=WAIT)
    yield pool
    pool.close()


def meeting(count: int) -> list[Callable[[], int]]:
    """Jobs none of which ends before all have begun: each needs a thread of its own."""
    barrier = Barrier(count)

    def meet() -> int:
        barrier.wait(WAIT)
        return threading.get_ident()

    return [meet] * count


def until(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def threads(pool: DecodePool) -> int:
    return pool.stats()["decode_threads"]


def decoders() -> list[Thread]:
    return [t for t in threading.enumerate() if t.name == "toolkit-decode"]


# -- results and errors -------------------------------------------------------------------------


@pytest.mark.parametrize("most", [0, 1, 3])
@pytest.mark.parametrize("count", [0, 1, 2, 50])
def test_results_come_in_the_jobs_order(most: int, count: int) -> None:
    pool = DecodePool(most=most, idle=0.0)
    assert pool.run([lambda n=n: n * n for n in range(count)]) == [n * n for n in range(count)]
    assert pool.stats()["decode_jobs"] == count
    pool.close()


def test_parts_of_a_block_are_decoded_into_their_places(pool: DecodePool) -> None:
    rows, count = 2_000, 12
    walk = np.round(np.cumsum(np.sin(np.arange(rows * count))), 2)
    out = np.empty(rows * count)

    def job(at: slice) -> Callable[[], None]:
        head, parts = blocks.encode_parts(np.arange(rows), {"x": walk[at]}, {})
        header = blocks.read_header(head)

        def decode() -> None:
            blocks.decode_part_into(header, header.columns[1], parts[1], out[at])

        return decode

    pool.run([job(slice(i * rows, (i + 1) * rows)) for i in range(count)])
    assert out.tobytes() == walk.tobytes()


def test_the_first_error_is_raised_when_all_that_had_begun_are_done() -> None:
    pool = DecodePool(most=1, idle=WAIT)
    both, ended = Barrier(2), []

    def slow() -> None:
        both.wait(WAIT)
        until(lambda: pool.stats()["decode_jobs"] == 1)
        ended.append("slow")
        raise ValueError("first")

    def quick() -> None:
        both.wait(WAIT)
        raise KeyError("second")

    def late() -> None:
        ended.append("late")

    with pytest.raises(ValueError, match="first"):
        pool.run([slow, quick, late, late])
    assert ended == ["slow"]  # and what had not begun never does
    assert pool.stats()["decode_waiting"] == 0
    assert pool.run([lambda: 1, lambda: 2]) == [1, 2]
    pool.close()


def test_an_error_does_not_keep_what_was_decoded(pool: DecodePool) -> None:
    class Values:
        pass

    seen: list[weakref.ref[Values]] = []

    def load() -> Values:
        values = Values()
        seen.append(weakref.ref(values))
        return values

    def fail() -> None:
        raise ValueError("no")

    jobs: list[Callable[[], Any]] = [load, load, fail]
    gc.disable()
    try:
        with pytest.raises(ValueError, match="no"):
            pool.run(jobs)
        until(lambda: not any(ref() for ref in seen))
        pool.run([load, load, load])
        until(lambda: not any(ref() for ref in seen))
    finally:
        gc.enable()


def test_an_interrupt_reaches_the_caller_whichever_thread_it_hit(pool: DecodePool) -> None:
    def stop() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pool.run([stop, stop, stop])
    assert pool.run([lambda: 1] * 9) == [1] * 9


# -- growing and shrinking ----------------------------------------------------------------------


def test_threads_are_started_when_jobs_wait_and_not_before(pool: DecodePool) -> None:
    assert threads(pool) == 0
    pool.run([lambda: 1])
    assert threads(pool) == 0
    assert len(set(pool.run(meeting(2)))) == 2
    assert threads(pool) == 1
    for _ in range(5):
        pool.run(meeting(2))
    assert threads(pool) == 1  # it is there, and free
    assert len(set(pool.run(meeting(4)))) == 4
    assert threads(pool) == 3
    pool.run([lambda: 1] * 100)
    assert threads(pool) == 3
    assert {(t.name, t.daemon) for t in decoders()} == {("toolkit-decode", True)}


def test_threads_that_find_nothing_end_down_to_the_least() -> None:
    pool = DecodePool(least=1, most=4, idle=SOON)
    pool.run(meeting(5))
    assert threads(pool) > 1
    until(lambda: threads(pool) == 1)
    time.sleep(3 * SOON)
    assert threads(pool) == 1
    assert len(set(pool.run(meeting(5)))) == 5  # and it grows again
    pool.close()


def test_a_pool_that_is_forgotten_ends_its_threads() -> None:
    pool = DecodePool(least=2, most=2, idle=SOON)
    pool.run(meeting(3))
    mine = decoders()
    del pool
    until(lambda: not any(thread.is_alive() for thread in mine))


def test_without_a_bound_there_are_as_many_as_cores() -> None:
    assert DecodePool().most == len(os.sched_getaffinity(0))
    with pytest.raises(ValueError, match="at least 3 and at most 2 threads"):
        DecodePool(least=3, most=2)


def test_where_no_thread_is_to_be_had_the_caller_does_it_all(
    pool: DecodePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(Thread, "start", refuse)
        assert set(pool.run([threading.get_ident] * 20)) == {threading.get_ident()}
        assert threads(pool) == 0
    assert len(set(pool.run(meeting(4)))) == 4


# -- many callers -------------------------------------------------------------------------------


def test_many_callers_share_the_threads(pool: DecodePool) -> None:
    def call(caller: int) -> list[tuple[int, int]]:
        return pool.run([lambda n=n: (caller, n) for n in range(20)])

    with ThreadPoolExecutor(16) as callers:
        answers = list(callers.map(call, range(200)))
    assert answers == [[(caller, n) for n in range(20)] for caller in range(200)]
    assert pool.stats()["decode_jobs"] == 4_000
    assert pool.stats()["decode_waiting"] == 0
    assert threads(pool) <= 3


def test_callers_are_served_in_turn() -> None:
    pool = DecodePool(most=1, idle=WAIT)
    threads_gate, callers_gate = Event(), Event()
    served: list[str] = []

    def hold() -> None:
        is_thread = threading.current_thread().name == "toolkit-decode"
        (threads_gate if is_thread else callers_gate).wait(WAIT)

    def call(name: str, held: int) -> None:
        pool.run([hold] * held + [lambda: served.append(name)] * 4)

    with ThreadPoolExecutor(2) as callers:
        calls = [callers.submit(call, "a", 2)]
        until(lambda: pool.stats()["decode_waiting"] == 4)  # caller and thread are held
        calls.append(callers.submit(call, "b", 1))
        until(lambda: pool.stats()["decode_waiting"] == 8)
        assert pool.stats()["decode_busy"] == pool.stats()["decode_threads"] == 1
        threads_gate.set()
        until(lambda: len(served) == 8)
        callers_gate.set()
        assert [done.result(WAIT) for done in calls] == [None, None]
    assert served == ["a", "b"] * 4
    assert pool.stats()["decode_jobs"] == 11
    pool.close()


def test_a_job_may_have_jobs_of_its_own(pool: DecodePool) -> None:
    def nested(depth: int) -> int:
        if not depth:
            return 1
        return sum(pool.run([lambda: nested(depth - 1)] * 4))

    with ThreadPoolExecutor(4) as callers:
        assert list(callers.map(nested, [4] * 8)) == [4**4] * 8


# -- the end ------------------------------------------------------------------------------------


def test_closing_ends_the_threads_and_the_pool_may_go_on(pool: DecodePool) -> None:
    pool.run(meeting(4))
    mine = decoders()
    assert len(mine) == 3
    pool.close()
    assert not any(thread.is_alive() for thread in mine)
    assert pool.stats() == dict.fromkeys(pool.stats(), 0)
    assert len(set(pool.run(meeting(4)))) == 4


def test_closing_in_the_midst_loses_no_job(pool: DecodePool) -> None:
    for _ in range(20):
        begun = Event()

        def job(n: int, begun: Event = begun) -> int:
            begun.set()
            return n

        with ThreadPoolExecutor(1) as caller:
            answer = caller.submit(pool.run, [lambda n=n: job(n) for n in range(300)])
            begun.wait(WAIT)
            pool.close()
            assert answer.result(WAIT) == list(range(300))


def test_a_forked_child_begins_without_threads(pool: DecodePool) -> None:
    pool.run(meeting(4))
    assert pool._own_room._lock.acquire()  # as if another thread had it at that moment
    child = os.fork()
    if child == 0:
        try:
            is_right = threads(pool) == 0 and len(set(pool.run(meeting(4)))) == 4
            pool.close()
            os._exit(0 if is_right else 1)
        finally:
            os._exit(2)
    pool._own_room._lock.release()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert threads(pool) == 3
    assert len(set(pool.run(meeting(4)))) == 4
