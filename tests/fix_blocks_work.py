"""What other processes do to the series of ``fix_blocks_truth``, again and again until told."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
from fix_blocks_truth import (
    BATCHES,
    EBB,
    GAPS,
    SERIES,
    SPAN,
    STILL,
    TIDE,
    WEEK,
    Wrong,
    batch,
    frame,
    look,
    moment,
)
from fix_stores import cached, open_store

import toolkit
from toolkit import cutting
from toolkit.errors import Busy, InputError


@dataclass(slots=True)
class Done:
    """What a process has done: how often what, and what went wrong."""

    counts: dict[str, int] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)

    def add(self, what: str, number: int = 1) -> None:
        self.counts[what] = self.counts.get(what, 0) + number


Act = Callable[[Any, random.Random, Done], None]


def _until_told(line: Connection, act: Callable[[], None], done: Done) -> None:
    line.send("ready")
    while not line.poll() and len(done.wrong) < 5:
        try:
            act()
        except (Wrong, Exception) as error:
            done.wrong.append(f"{time.time():.3f} {type(error).__name__}: {error}")
    line.send(done)
    line.recv()


def read(line: Connection, colour: str, dsn: str, seed: int) -> None:
    """Look at the series through a store that remembers and one that does not."""
    chance, done = random.Random(seed), Done()
    with ExitStack() as stack:
        sources = {"cached": cached(dsn), "uncached": dsn}
        stores = {n: stack.enter_context(open_store(colour, s)) for n, s in sources.items()}
        past: dict[str, dict[str, Any]] = {name: {} for name in stores}

        def act() -> None:
            name = chance.choice(["cached", "uncached", "uncached"])
            cols = look(stores[name], chance, past[name], remembers=name == "cached")
            done.add(name)
            for source, count in (cols.plan.sources if cols is not None else {}).items():
                done.add(f"points from {source}", count)

        _until_told(line, act, done)


def work(line: Connection, role: str, colour: str, dsn: str, seed: int) -> None:
    """Do what a role does, to the end of each thing, until told."""
    chance, done = random.Random(seed), Done()
    cutting.TARGET = chance.choice([150, 500, 2_000])
    with open_store(colour, dsn) as store:
        once = ROLES[role](store, chance, done)

        def act() -> None:
            once()
            time.sleep(chance.random() * PAUSES.get(role, 0.0))

        _until_told(line, act, done)


# -- those who move points ----------------------------------------------------------------------


def packs(store: Any, chance: random.Random, done: Done) -> Callable[[], None]:
    """Make blocks and rows of this and that series, in this and that time."""

    def act() -> None:
        low, high = sorted(chance.sample(range(SPAN[0], SPAN[1] + WEEK, WEEK // 14), 2))
        series = chance.choice([None, *SERIES])
        what = chance.choice(["compress", "recompress", "decompress"])
        began = time.monotonic()
        try:
            if what == "decompress":
                report = store.decompress("candles", series, moment(low), moment(high))
            else:
                how = {"start": moment(low)} if chance.random() < 0.5 else {}
                report = getattr(store, what)("candles", series, end=moment(high), **how)
        except Busy:
            done.add("busy")
            return
        done.add(what)
        done.add(f"seconds of {what}", time.monotonic() - began)
        done.add("busy", report.busy)
        done.add("moved", report.points)

    return act


# -- those who write ----------------------------------------------------------------------------


def _refused(done: Done, act: Callable[[], object]) -> None:
    try:
        act()
    except InputError:
        done.add("refused")
    else:
        raise Wrong("mode 'insert' took a key that is there")


def writes_same(store: Any, chance: random.Random, done: Done) -> Callable[[], None]:
    """Write what is there already, and try to write what must not be."""
    volumes = np.arange(len(STILL))

    def act() -> None:
        low, high = sorted(chance.sample(range(len(STILL)), 2))
        high = min(high, low + chance.choice([1, 50, 4_000]))
        ts, volume = STILL[low:high], volumes[low:high]
        what = chance.choice(["all", "some", "ignore", "insert", "insert the same"])
        if what == "all":
            store.write("candles", frame(ts, volume), series="still")
        elif what == "some":
            store.write("candles", frame(ts, volume, ["volume", "high"]), series="still")
        elif what == "ignore":
            report = store.write("candles", frame(ts, -1), series="still", mode="ignore")
            if report.inserted or report.updated:
                raise Wrong(f"mode 'ignore' wrote what is there: {report}")
        elif what == "insert":
            _refused(
                done,
                lambda: store.write("candles", frame(ts, -1), series="still", mode="insert"),
            )
        else:
            _refused(
                done,
                lambda: store.write("candles", frame(ts, volume), series="still", mode="insert"),
            )
        done.add(what)

    return act


def writes_tide(store: Any, chance: random.Random, done: Done) -> Callable[[], None]:
    """Give all points another volume at once, whole or in that column only."""
    cols = store.read("candles", "tide", *map(moment, SPAN), limit=1)
    level = int(cols["volume"][0])

    def act() -> None:
        nonlocal level
        level += 1
        columns = chance.choice([("volume",), ("close", "volume"), None])
        points = frame(TIDE, level, columns) if columns else frame(TIDE, level)
        report = store.write("candles", points, series="tide")
        if (report.inserted, report.updated) != (0, len(TIDE)):
            done.add("reports that took a point that moved for a new one")
        done.add("levels")

    return act


def writes_ebb(store: Any, chance: random.Random, done: Done) -> Callable[[], None]:
    """Delete a stretch and write it again."""
    _mend_ebb(store)

    def act() -> None:
        low, high = chance.choice(GAPS)
        gone = EBB[(low <= EBB) & (high > EBB)]
        count = store.delete("candles", "ebb", moment(low), moment(high))
        if count != len(gone):
            raise Wrong(f"deleted {count} points instead of {len(gone)}")
        done.add("deleted", count)
        mode = chance.choice(["upsert", "insert", "ignore"])
        report = store.write("candles", frame(gone, 1), series="ebb", mode=mode)
        if report.inserted != len(gone):
            raise Wrong(f"mode {mode!r} after a delete: {report}")

    return act


def _mend_ebb(store: Any) -> None:
    # whoever did this before may have been killed after its delete
    store.write("candles", frame(EBB, 1), series="ebb", mode="ignore")


def writes_grow(store: Any, chance: random.Random, done: Done) -> Callable[[], None]:
    """Add batches, each of which lies between the points of all others."""
    cols = store.read("candles", "grow", *map(moment, SPAN), freshness="strong")
    number = int(cols["volume"].max())

    def act() -> None:
        nonlocal number
        if number + 1 >= BATCHES:
            return
        number += 1
        mode = chance.choice(["upsert", "insert", "ignore"])
        report = store.write("candles", batch(number), series="grow", mode=mode)
        if report.inserted != len(batch(number)["ts"]):
            raise Wrong(f"batch {number}, mode {mode!r}: {report}")
        done.add("batches")
        old = batch(chance.randint(0, number))
        _refused(done, lambda: store.write("candles", old, series="grow", mode="insert"))

    return act


def refreshes(store: Any, chance: random.Random, done: Done) -> Callable[[], None]:
    """Bring rollups up to now, all the time."""

    def act() -> None:
        done.add("buckets", sum(level.written for level in store.refresh("candles").levels))

    return act


ROLES: dict[str, Callable[[Any, random.Random, Done], Callable[[], None]]] = {
    "packs": packs,
    "writes same": writes_same,
    "writes tide": writes_tide,
    "writes ebb": writes_ebb,
    "writes grow": writes_grow,
    "refreshes": refreshes,
}
PAUSES = {  # seconds at most: a refresh of all that changes takes longer, and packers wait for it
    "writes same": 0.05,
    "writes tide": 0.4,
    "writes ebb": 0.2,
    "writes grow": 0.4,
    "refreshes": 2.0,
}


# -- afterwards ---------------------------------------------------------------------------------


def finish(store: toolkit.Store) -> None:
    """Compress all there is; raises Wrong if that leaves anything to do."""
    whole = moment(SPAN[1] + 4 * WEEK)
    for _ in range(10):  # the backend of who was killed may hold a lock for a moment
        report = store.compress("candles", end=whole)
        if not (report.busy or report.waiting):
            break
    again = store.compress("candles", end=whole)
    if again.points or again.blocks or again.busy or again.waiting:
        raise Wrong(f"there was something left to do: {again} after {report}")
