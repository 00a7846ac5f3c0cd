"""Turns for calls: how many at once, who goes first, and who is refused."""

from __future__ import annotations

import asyncio
import threading
import time
from concurrent.futures import Future
from itertools import pairwise

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


def enter(admission: Admission, priority: str = "normal") -> Future[None] | None:
    return admission.enter(priority, admission._clock() + admission.deadline(priority))


def wait_of(admission: Admission, caller: str = "", priority: str = "normal") -> float:
    """Ask for a token once, and leave the line if there is none."""
    until = admission._clock() + admission.deadline(priority)
    place = admission.join(caller, priority, until)
    assert place is not None
    try:
        wait = admission.token(place)
    except Refused:
        admission.withdraw(place)
        raise
    if wait:
        admission.withdraw(place)
    return wait


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
    assert enter(admission) is None
    assert enter(admission) is None
    third = enter(admission)
    assert third is not None
    assert not third.done()
    admission.leave(0.01)
    assert third.done()
    assert admission.inflight == 2


def test_urgent_goes_before_normal_and_normal_before_batch() -> None:
    admission, _ = an_admission(max_inflight=1)
    enter(admission)
    lines = {p: enter(admission, p) for p in ("batch", "normal", "urgent")}
    went = []
    for _ in range(3):
        admission.leave(0.001)
        went += [p for p, turn in lines.items() if turn is not None and turn.done()]
        lines = {p: turn for p, turn in lines.items() if p not in went}
    assert went == ["urgent", "normal", "batch"]


def test_who_cannot_get_a_turn_in_time_is_refused_at_once_and_told_when_to_come_back() -> None:
    admission, _ = an_admission(max_inflight=1, normal=0.2)
    for _ in range(60):
        assert enter(admission) is None
        admission.leave(0.5)  # calls take half a second
    enter(admission)
    with pytest.raises(Refused, match="1 reads are under way and 0 wait") as refused:
        enter(admission)
    assert 0.4 < refused.value.retry_after <= 0.5
    assert enter(admission, "batch") is not None  # that has a second


def test_a_turn_that_comes_after_its_deadline_goes_to_the_next() -> None:
    admission, clock = an_admission(max_inflight=1, normal=0.2)
    enter(admission)
    late, waiting = enter(admission), None
    clock.now += 0.3
    waiting = enter(admission)
    admission.leave(0.01)
    assert late is not None
    assert waiting is not None
    assert (late.done(), waiting.done()) == (False, True)


def test_who_is_refused_together_comes_back_one_after_the_other() -> None:
    admission, _ = an_admission(max_inflight=1, normal=0.2)
    for _ in range(60):
        enter(admission)
        admission.leave(0.5)
    enter(admission)
    told = []
    for _ in range(4):
        with pytest.raises(Refused) as refused:
            enter(admission)
        told.append(refused.value.retry_after)
    assert [round(b - a, 2) for a, b in pairwise(told)] == [0.5] * 3


# -- a caller's share ---------------------------------------------------------------------------


def test_each_caller_has_a_share_of_its_own() -> None:
    admission, clock = an_admission(rate=2.0, burst=3)
    for _ in range(3):
        assert wait_of(admission, "a") == 0.0
    with pytest.raises(Refused, match="caller 'a' asks for more than 2 a second") as refused:
        wait_of(admission, "a", "urgent")
    assert (refused.value.limit, refused.value.retry_after) == ("rate", pytest.approx(0.5))
    assert wait_of(admission, "b") == 0.0
    clock.now += 0.5
    assert wait_of(admission, "a") == 0.0


def test_tokens_to_come_are_given_in_turn_and_the_rest_is_told_later_ones() -> None:
    admission, _ = an_admission(rate=5.0, burst=2)
    waits, told = [], []
    until = admission._clock() + 1.0
    for _ in range(12):
        place = admission.join("", "batch", until)
        assert place is not None
        try:
            waits.append(round(admission.token(place), 3))
        except Refused as refused:
            admission.withdraw(place)
            told.append((round(refused.retry_after, 3), str(refused)))
    assert waits == [0.0, 0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    assert [after for after, _ in told] == [1.2, 1.4, 1.6, 1.8, 2.0]
    assert {said for _, said in told} == {"reads without caller ask for more than 5 a second"}
    assert admission.stats()["admission_waiting"] == 5


def test_an_urgent_read_has_the_next_token_and_those_in_line_wait_on() -> None:
    admission, clock = an_admission(rate=20.0, burst=1)
    wait_of(admission)
    batch = admission.join("", "batch", clock.now + 1.0)
    assert batch is not None
    assert admission.token(batch) == pytest.approx(0.05)
    urgent = admission.join("", "urgent", clock.now + 0.051)
    assert urgent is not None
    assert admission.token(urgent) == pytest.approx(0.05)
    clock.now += 0.05
    assert admission.token(batch) == pytest.approx(0.05)
    assert admission.token(urgent) == 0.0
    clock.now += 0.05
    assert admission.token(batch) == 0.0


def test_a_token_that_was_of_no_use_is_given_back() -> None:
    admission, clock = an_admission(rate=1.0, burst=1)
    place = admission.join("", "normal", clock.now)
    assert place is not None
    assert admission.token(place) == 0.0
    admission.withdraw(place)
    assert wait_of(admission) == 0.0


@given(st.data())
def test_no_caller_has_more_than_its_rate_and_its_burst(data: st.DataObject) -> None:
    rate, burst = data.draw(st.integers(1, 50)), data.draw(st.integers(1, 5))
    admission, clock = an_admission(rate=float(rate), burst=burst, batch=10.0)
    began, taken, line = clock.now, 0, []
    for _ in range(60):
        clock.now += data.draw(st.floats(0, 0.2))
        priority = data.draw(st.sampled_from(["urgent", "normal", "batch"]))
        place = admission.join("", priority, clock.now + admission.deadline(priority))
        assert place is not None
        line.append(place)
        for mine in list(line):
            try:
                if admission.token(mine):
                    continue
                taken += 1
            except Refused:
                admission.withdraw(mine)
            line.remove(mine)
        assert taken <= burst + (clock.now - began) * rate + 1e-3
        assert admission.stats()["admission_waiting"] == len(line)


def test_callers_are_not_remembered_without_end() -> None:
    admission, clock = an_admission(rate=1.0, burst=1)
    for number in range(30_000):
        clock.now += 0.001
        wait_of(admission, str(number))
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
                turn = enter(admission, data.draw(st.sampled_from(["urgent", "normal"])))
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


def test_reads_above_the_rate_wait_for_their_tokens() -> None:
    async def main() -> None:
        options = AdmissionOptions(rate=50.0, burst=2, batch=0.1)
        gate = Gate(AsyncDriver("host=nowhere", PoolOptions()), options)
        began, done, told = time.monotonic(), [], []

        async def call() -> None:
            try:
                async with gate.turn(a_query("batch", "x")):
                    done.append(time.monotonic() - began)
            except Overloaded as error:
                told.append(error.retry_after)
                said = str(error)
                assert said.startswith("caller 'x' asks for more than 50 a second: a batch read")
                assert said.endswith("or raise rate in [admission]")

        await asyncio.gather(*(call() for _ in range(12)))
        assert 6 <= len(done) <= 8  # 2 at once, and 5 within 0.1 s
        assert all(moment > (place - 1) / 50 - 0.005 for place, moment in enumerate(done))
        assert told == sorted(told)
        assert len({round(after, 3) for after in told}) == len(told)
        # a hint is held: who comes back then waits for nobody
        await asyncio.sleep(told[0])
        done.clear()
        await call()
        assert done
        assert gate.stats() | {"admission_refused": 0} == {
            "admission_inflight": 0,
            "admission_waiting": 0,
            "admission_waited": gate.stats()["admission_waited"],
            "admission_refused": 0,
        }

    asyncio.run(main())


def test_threads_wait_for_their_tokens_and_a_timeout_bounds_that() -> None:
    gate = Gate(BlockingDriver("host=nowhere", PoolOptions()), AdmissionOptions(rate=20.0, burst=1))

    async def work(timeout: float | None = None) -> None:
        async with gate.turn(a_query("batch", timeout=timeout)):
            pass

    began = time.monotonic()
    drive(work())
    drive(work())
    assert time.monotonic() - began >= 0.045
    with pytest.raises(Overloaded, match=r"within 0.01 s; try again in 0.0\d+ s"):
        drive(work(timeout=0.01))
    assert time.monotonic() - began < 0.5


def test_a_read_cancelled_while_it_waits_for_a_token_leaves_the_line() -> None:
    async def main() -> None:
        gate = Gate(AsyncDriver("host=nowhere", PoolOptions()), AdmissionOptions(rate=2.0, burst=1))

        async def call() -> None:
            async with gate.turn(a_query("batch")):
                pass

        await call()
        waits = asyncio.create_task(call())
        await asyncio.sleep(0)
        assert gate.stats()["admission_waiting"] == 1
        waits.cancel()
        await asyncio.gather(waits, return_exceptions=True)
        assert gate.stats()["admission_waiting"] == 0

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
    enter(admission)
    turn: Future[None] | None = enter(admission)
    assert turn is not None
    admission.leave(0.01)
    assert admission.give_up(turn) is None
    assert admission.inflight == 1
