"""Turns for calls: how many at once, who goes first, and who is refused."""

from __future__ import annotations

import asyncio
import threading
import time
from concurrent.futures import Future

import pytest
from hypothesis import given
from hypothesis import strategies as st

from toolkit.admitting import Gate
from toolkit.drivers import drive
from toolkit.drivers.aio import AsyncDriver
from toolkit.drivers.blocking import BlockingDriver
from toolkit.errors import Overloaded, QueryError
from toolkit.options import PoolOptions
from toolkit.query import Query, build_query
from toolkit_routing import Admission, AdmissionOptions, Refused


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def an_admission(**options: float) -> tuple[Admission, Clock]:
    clock = Clock()
    return Admission(AdmissionOptions(**options), clock), clock  # type: ignore[arg-type]


def a_query(priority: str = "normal", caller: str = "", timeout: float | None = None) -> Query:
    return build_query(
        *("candles", "A", "2024-01-01Z", "2024-01-02Z"),
        priority=priority,
        caller=caller,
        timeout=timeout,
    )


@pytest.mark.parametrize(
    "options", [{"max_inflight": -1}, {"rate": float("nan")}, {"burst": 0}, {"batch": -0.1}]
)
def test_options_that_cannot_be_are_refused(options: dict[str, float]) -> None:
    (key,) = options
    with pytest.raises(ValueError, match=f"{key}: .* is not a number from"):
        an_admission(**options)


def test_so_many_at_once_and_the_next_when_one_leaves() -> None:
    admission, _ = an_admission(max_inflight=2)
    assert admission.enter("", "normal") is None
    assert admission.enter("", "normal") is None
    third = admission.enter("", "normal")
    assert third is not None
    assert not third.done()
    admission.leave(0.01)
    assert third.done()
    assert admission.inflight == 2


def test_urgent_goes_before_normal_and_normal_before_batch() -> None:
    admission, _ = an_admission(max_inflight=1)
    admission.enter("", "normal")
    lines = {p: admission.enter("", p) for p in ("batch", "normal", "urgent")}
    went = []
    for _ in range(3):
        admission.leave(0.001)
        went += [p for p, turn in lines.items() if turn is not None and turn.done()]
        lines = {p: turn for p, turn in lines.items() if p not in went}
    assert went == ["urgent", "normal", "batch"]


def test_who_cannot_get_a_turn_in_time_is_refused_at_once_and_told_when_to_come_back() -> None:
    admission, _ = an_admission(max_inflight=1, normal=0.2)
    for _ in range(60):
        assert admission.enter("", "normal") is None
        admission.leave(0.5)  # calls take half a second
    admission.enter("", "normal")
    with pytest.raises(Refused, match="1 calls are under way and 0 wait") as refused:
        admission.enter("", "normal")
    assert 0.4 < refused.value.retry_after <= 0.5
    assert admission.enter("", "batch") is not None  # that has a second


def test_a_turn_that_comes_after_its_deadline_goes_to_the_next() -> None:
    admission, clock = an_admission(max_inflight=1, normal=0.2)
    admission.enter("", "normal")
    late, waiting = admission.enter("", "normal"), None
    clock.now += 0.3
    waiting = admission.enter("", "normal")
    admission.leave(0.01)
    assert late is not None
    assert waiting is not None
    assert (late.done(), waiting.done()) == (False, True)


def test_each_caller_has_a_share_of_its_own() -> None:
    admission, clock = an_admission(rate=2.0, burst=3)
    for _ in range(3):
        assert admission.enter("a", "normal") is None
    with pytest.raises(Refused, match="caller 'a' asks more often than it may") as refused:
        admission.enter("a", "urgent")
    assert refused.value.retry_after == pytest.approx(0.5)
    assert admission.enter("b", "normal") is None
    clock.now += 0.5
    assert admission.enter("a", "normal") is None


def test_callers_are_not_remembered_without_end() -> None:
    admission, clock = an_admission(rate=1.0, burst=1)
    for number in range(30_000):
        clock.now += 0.001
        admission.enter(str(number), "normal")
    assert len(admission._buckets) <= 10_000


@given(st.data())
def test_never_more_than_may_be_and_nobody_waits_where_there_is_room(data: st.DataObject) -> None:
    most = data.draw(st.integers(1, 4))
    admission, clock = an_admission(max_inflight=most)
    running, waiting = 0, []
    for _ in range(60):
        clock.now += data.draw(st.floats(0, 0.1))
        act = data.draw(st.sampled_from(["enter", "leave", "give up"]))
        if act == "enter":
            try:
                turn = admission.enter("", data.draw(st.sampled_from(["urgent", "normal"])))
            except Refused:
                continue
            if turn is None:
                running += 1
            else:
                waiting.append(turn)
        elif act == "leave" and running:
            running -= 1
            admission.leave(0.001)
        elif act == "give up" and waiting:
            turn = waiting.pop(data.draw(st.integers(0, len(waiting) - 1)))
            running += admission.give_up(turn) is None
        now_running = [turn for turn in waiting if turn.done() and not turn.cancelled()]
        running += len(now_running)
        waiting = [turn for turn in waiting if turn not in now_running]
        assert running == admission.inflight <= most


# -- the door of a store ------------------------------------------------------------------------


def test_threads_take_turns_and_the_late_ones_are_overloaded() -> None:
    gate = Gate(BlockingDriver("host=nowhere", PoolOptions()), AdmissionOptions(2, normal=0.1))
    at_once, most, ends = 0, 0, []
    lock, release = threading.Lock(), threading.Event()

    async def work() -> None:
        nonlocal at_once, most
        async with gate.turn(a_query()):
            with lock:
                at_once += 1
                most = max(most, at_once)
            release.wait(10)
            with lock:
                at_once -= 1

    def call() -> None:
        try:
            drive(work())
            ends.append("done")
        except Overloaded as error:
            ends.append(f"overloaded {error.retry_after > 0} {error.retryable}")

    threads = [threading.Thread(target=call) for _ in range(6)]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + 10
    while len(ends) < 4 and time.monotonic() < deadline:
        threading.Event().wait(0.005)
    release.set()
    for thread in threads:
        thread.join()
    assert (sorted(ends), most) == (["done"] * 2 + ["overloaded True True"] * 4, 2)
    assert gate.stats()["admission_inflight"] == 0


def test_tasks_take_turns_and_a_cancelled_one_leaves_its_place() -> None:
    async def main() -> None:
        gate = Gate(AsyncDriver("host=nowhere", PoolOptions()), AdmissionOptions(1, batch=5.0))
        release = asyncio.Event()
        order: list[str] = []

        async def call(name: str) -> None:
            async with gate.turn(a_query("batch", name)):
                order.append(name)
                await release.wait()

        tasks = [asyncio.create_task(call(name)) for name in "abc"]
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        tasks[1].cancel()
        await asyncio.gather(tasks[1], return_exceptions=True)
        release.set()
        await asyncio.gather(tasks[0], tasks[2])
        assert order == ["a", "c"]
        assert gate.stats()["admission_inflight"] == 0

    asyncio.run(main())


def test_without_options_nobody_waits_and_nothing_is_counted() -> None:
    gate = Gate(BlockingDriver("host=nowhere", PoolOptions()), AdmissionOptions())

    async def work() -> None:
        async with gate.turn(a_query()):
            pass

    drive(work())
    assert gate.stats() == {}


def test_a_priority_there_is_not_is_refused() -> None:
    with pytest.raises(QueryError, match="priority: 'high' is none of urgent, normal, batch"):
        a_query("high")


def test_a_turn_given_at_the_last_moment_is_taken() -> None:
    admission, _ = an_admission(max_inflight=1)
    admission.enter("", "normal")
    turn: Future[None] | None = admission.enter("", "normal")
    assert turn is not None
    admission.leave(0.01)
    assert admission.give_up(turn) is None
    assert admission.inflight == 1
