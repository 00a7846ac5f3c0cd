"""Where compression meets something else half way: streams, drops, TRUNCATE, and itself."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import numpy as np
import psycopg
import pytest
from fix_blocks_truth import (
    BORDER,
    DAY,
    SPAN,
    STEPS,
    STILL,
    STRATEGIES,
    T0,
    WEEK,
    Wrong,
    bars,
    frame,
    moment,
    points,
)
from fix_servers import Database
from fix_stores import COLOURS, cached, open_store

import toolkit
from toolkit import cutting
from toolkit.errors import Busy, InputError

VOLUME = np.arange(len(STILL))
END = moment(SPAN[1] + 4 * WEEK)
DROPPED = (BORDER - 29 * DAY, BORDER)
REST = STILL >= BORDER


@pytest.fixture(autouse=True)
def _blocks_of_some_hundred_points(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cutting, "TARGET", 300)


@pytest.fixture
def still(blocking: toolkit.Store) -> toolkit.Store:
    """A store with one series of 4,000 points in two partitions."""
    blocking.write("candles", frame(STILL, VOLUME), series="still")
    return blocking


def see(store: Any, **how: Any) -> Any:
    return store.read("candles", "still", *map(moment, SPAN), freshness="strong", **how)


def check_all(store: Any, ts: Any = STILL, volume: Any = VOLUME) -> None:
    """See that points and bars of every strategy are those of a frame."""
    points(see(store), ts, volume)
    for step, width in STEPS.items():
        for strategy in STRATEGIES:
            bars(see(store, step=step, strategy=strategy), ts, volume, width)


def moves(store: toolkit.Store) -> list[Callable[[], Any]]:
    return [
        lambda: store.compress("candles", end=END),
        lambda: store.decompress("candles"),
        lambda: store.compress("candles", end=moment(T0 + 10 * WEEK // 7)),
    ]


@pytest.mark.parametrize("colour", COLOURS)
def test_a_stream_goes_on_in_its_snapshot_while_points_move_and_space_is_given_back(
    still: toolkit.Store, database: Database, colour: str
) -> None:
    still.compress("candles", end=END)  # who makes a partition waits for transactions to end
    still.decompress("candles")
    with open_store(colour, database.dsn) as store:
        for move in moves(still):
            found = []
            for number, piece in enumerate(
                store.stream("candles", "still", *map(moment, SPAN), rows=700)
            ):
                found.append(piece)
                if number == 1:
                    move()
            assert np.concatenate([p.instants for p in found]).tolist() == STILL.tolist()
            assert np.concatenate([p["volume"] for p in found]).tolist() == VOLUME.tolist()


@pytest.mark.parametrize("colour", COLOURS)
def test_a_dropped_partition_is_there_whole_or_not_at_all_for_who_reads_and_who_compresses(
    still: toolkit.Store, database: Database, colour: str
) -> None:
    stop, wrong = threading.Event(), []

    def again(act: Callable[[random.Random], None], seed: int) -> int:
        chance, times = random.Random(seed), 0
        while not stop.is_set() and not wrong:
            try:
                act(chance)
            except Busy:
                pass
            except Exception as error:
                wrong.append(f"{act.__name__}: {type(error).__name__}: {error}")
            times += 1
        return times

    with ExitStack() as stack:
        reader = stack.enter_context(open_store(colour, database.dsn))
        packer = stack.enter_context(toolkit.connect(database.dsn))

        def read(chance: random.Random) -> None:
            cols = see(reader)
            ts, volume = (STILL, VOLUME) if len(cols) == len(STILL) else (STILL[REST], VOLUME[REST])
            points(cols, ts, volume)

        def pack(chance: random.Random) -> None:
            chance.choice(moves(packer))()

        with ThreadPoolExecutor(2) as pool:
            jobs = [pool.submit(again, read, 1), pool.submit(again, pack, 2)]
            try:
                for number in range(40):
                    if wrong:
                        break
                    try:
                        gone = still.drop_partitions("candles", *map(moment, DROPPED))
                    except Busy:  # whoever gives space back may hold it for some seconds
                        continue
                    if len(gone) != 1:
                        wrong.append(f"dropped {gone}")
                    if number % 3 == 2:
                        still.delete("candles", "still", *map(moment, DROPPED))
                    still.write("candles", frame(STILL[~REST], VOLUME[~REST]), series="still")
            finally:
                stop.set()
            counts = [job.result() for job in jobs]
    assert not wrong, "\n".join(wrong)
    assert min(counts) > 3
    check_all(still)
    still.refresh("candles")
    check_all(still)


def test_truncating_rows_by_hand_leaves_what_blocks_hold(
    still: toolkit.Store, database: Database, sql: psycopg.Connection[Any]
) -> None:
    still.compress("candles", end=END)
    with open_store("blocking", cached(database.dsn)) as remembering:
        check_all(remembering)
        some = STILL[::50]
        still.write("candles", frame(some, -1.0), series="still")
        corrected = VOLUME.astype(float).copy()
        corrected[::50] = -1.0
        check_all(remembering, STILL, corrected)
        still.refresh("candles")
        check_all(remembering, STILL, corrected)
        for partition in still.partitions("candles"):
            sql.execute(f"TRUNCATE {partition.name}")  # type: ignore[arg-type]
        check_all(remembering)
        still.refresh("candles")
        check_all(remembering)
        check_all(still)


def test_compress_up_to_the_middle_of_a_block_folds_in_what_is_late(still: toolkit.Store) -> None:
    still.compress("candles", end=END)
    still.write("candles", frame(STILL[::7] + 60_000_000, 5.0), series="still")
    for before in (T0 + WEEK // 2 + 17, T0 + WEEK + 5, SPAN[1]):
        still.compress("candles", start=moment(T0 + 86_400_000_000 + 3), end=moment(before))
    ts = np.concatenate([STILL, STILL[::7] + 60_000_000])
    order = np.argsort(ts)
    check_all(still, ts[order], np.concatenate([VOLUME, np.full(len(STILL[::7]), 5.0)])[order])


@pytest.mark.parametrize("colour", COLOURS)
def test_an_empty_range_of_compressed_time_is_empty(
    still: toolkit.Store, database: Database, colour: str
) -> None:
    still.compress("candles", end=END)
    at = moment(T0 + WEEK)
    with open_store(colour, database.dsn) as store:
        for step in (None, "1h"):
            assert len(store.read("candles", "still", at, at, step=step)) == 0


@pytest.mark.parametrize("volume", [VOLUME, -1.0], ids=["the same", "another"])
@pytest.mark.parametrize("colour", COLOURS)
def test_insert_refuses_a_key_in_a_block_whatever_its_values(
    still: toolkit.Store, database: Database, colour: str, volume: Any
) -> None:
    still.compress("candles", end=END)
    with open_store(colour, database.dsn) as store:
        for place in (slice(0, 1), slice(7, 3_000)):
            values = np.broadcast_to(np.asarray(volume, float), len(STILL))[place]
            with pytest.raises(InputError, match="mode 'insert'"):
                store.write("candles", frame(STILL[place], values), series="still", mode="insert")
    check_all(still)


def test_a_block_that_others_make_larger_while_rows_are_made_of_it(
    still: toolkit.Store, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Decompressing goes by a list of blocks that may be old when their turn comes."""
    still.compress("candles", end=END)
    changed = threading.Event()

    def progress(report: Any, total: int) -> None:
        if changed.is_set():
            return
        changed.set()
        with toolkit.connect(database.dsn) as other:
            monkeypatch.setattr(cutting, "TARGET", 3_000)
            late = STILL[900:2_000:3] + 60_000_000
            other.decompress("candles", "still", moment(T0 + 3 * WEEK // 2))
            other.write("candles", frame(late, 1.0), series="still")
            other.compress("candles", end=END)
            other.write("candles", frame(STILL[900:2_000], 1.0), series="still")
            other.delete(
                "candles", "still", moment(int(late[0])), moment(int(late[-1]) + 1_000_000)
            )
            other.write("candles", frame(STILL, VOLUME), series="still")

    still.decompress("candles", on_progress=progress)
    assert changed.is_set()
    check_all(still)
    still.decompress("candles")
    check_all(still)


def test_wrong_answers_are_found(still: toolkit.Store) -> None:
    """The checks of these tests see a point that is missing, that is twice, that is another's."""
    cols = see(still)
    points(cols, STILL, VOLUME)
    for ts, volume in (
        (STILL[1:], VOLUME[1:]),
        (np.append(STILL, STILL[-1] + 1), np.append(VOLUME, 0)),
        (STILL, np.where(STILL[77] == STILL, -1, VOLUME)),
    ):
        with pytest.raises(Wrong):
            points(cols, ts, volume)
