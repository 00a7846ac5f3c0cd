"""What each process wrote and read, and whether every read saw what it was promised.

Each key is written by one process only, every time with the next number: what a reader sees of a
key says how old that is.
"""

from __future__ import annotations

import random
import time
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from multiprocessing.connection import Connection
from threading import Lock, Thread
from typing import Any

from fix_topologies import threaded

import toolkit
from toolkit.config import Settings

KEYS = 24
BOUND_S = 1.0
READERS = 2  # threads of each process, beside the one that writes
_FIRST = datetime(2024, 1, 1, tzinfo=UTC)
RANGE = (_FIRST, _FIRST + timedelta(hours=KEYS))


@dataclass(frozen=True, slots=True)
class Written:
    """One write; ``number`` is what it stored, or removed, and ``acked`` when it returned."""

    process: int
    key: int
    number: int
    is_delete: bool
    began: float
    acked: float


@dataclass(frozen=True, slots=True)
class Seen:
    """One read: what it was promised, when it ran, and the numbers it saw.

    ``promise`` is strong, session, bounded or after; for the last, ``token`` says which process
    gave it, and when that was asked for it.
    """

    process: int
    promise: str
    began: float
    ended: float
    numbers: dict[int, int]
    token: tuple[int, float] | None = None
    node: str = ""


@dataclass(slots=True)
class _Life:
    """One key: its writes in order."""

    began: list[float] = field(default_factory=list)
    acked: list[float] = field(default_factory=list)
    deletes: list[int] = field(default_factory=list)

    def newest(self, moment: float) -> int:
        """The number of the last write that was acknowledged before a moment."""
        return bisect_left(self.acked, moment)

    def youngest(self, moment: float) -> int:
        """The number of the last write that had begun by a moment."""
        return bisect_right(self.began, moment)

    def newest_delete(self, moment: float) -> int:
        at = bisect_right(self.deletes, self.youngest(moment))
        return self.deletes[at - 1] if at else 0


def violations(writes: Iterable[Written], reads: Iterable[Seen], max_age: float) -> Iterator[str]:
    """Yield what is wrong with each read that saw less than it was promised, or the impossible."""
    lives: dict[int, _Life] = {}
    owner: dict[int, int] = {}
    for write in sorted(writes, key=lambda w: (w.key, w.number)):
        life = lives.setdefault(write.key, _Life())
        owner[write.key] = write.process
        assert write.number == len(life.acked) + 1, f"a number is missing before {write}"
        life.began.append(write.began)
        life.acked.append(write.acked)
        if write.is_delete:
            life.deletes.append(write.number)
    for read in reads:
        for key, life in lives.items():
            least = life.newest(_moment(read, owner[key], max_age))
            seen = read.numbers.get(key)
            # of what is not there any more: as new as the last delete that it can have seen
            number = seen if seen is not None else life.newest_delete(read.ended)
            if number < least:
                yield f"key {key} of process {owner[key]}: {number} ({seen}), not {least}: {read}"
            elif number > life.youngest(read.ended) or (seen is not None and seen in life.deletes):
                yield f"key {key}: {seen} was never there: {read}"


def _moment(read: Seen, owner: int, max_age: float) -> float:
    """Return up to when a process's writes must be seen."""
    if read.promise == "strong":
        return read.began
    if read.promise == "bounded":
        return read.began - BOUND_S
    moment = read.began if owner == read.process else read.began - max_age
    if read.token is not None and read.token[0] == owner:
        return max(moment, read.token[1])
    return moment


# -- a process that reads and writes --------------------------------------------------------------


@dataclass
class Done:
    """What one process did."""

    writes: list[Written] = field(default_factory=list)
    reads: list[Seen] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    stats: Counter[str] = field(default_factory=Counter)


def live(
    line: Connection,
    colour: str,
    settings: Settings,
    process: int,
    processes: int,
    tokens: list[Any],
    seconds: float,
    most: int,
) -> None:
    """Write, delete and read for so long, or so often; then tell all of it."""
    done, dice = Done(), random.Random(process)
    with threaded(colour, settings) as store:
        line.send("ready")
        line.recv()
        worker = _Worker(store, process, processes, tokens, done, time.monotonic() + seconds, most)
        threads = [Thread(target=worker.write, args=(dice.random(),))]
        threads += [Thread(target=worker.read, args=(dice.random(),)) for _ in range(READERS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        done.stats = Counter({k: int(v) for k, v in store.stats().items()})
    line.send(done)


@dataclass
class _Worker:
    store: Any
    process: int
    processes: int
    tokens: list[Any]  # an inbox for each process
    done: Done
    until: float
    most: int
    lock: Lock = field(default_factory=Lock)

    def _goes_on(self) -> bool:
        many = len(self.done.writes) + len(self.done.reads)
        return time.monotonic() < self.until and many < self.most and not self.done.errors

    def write(self, seed: float) -> None:
        """Write own keys in any order of time, so late ones, too; give tokens to others."""
        dice, numbers = random.Random(seed), Counter[int]()
        mine = range(self.process, KEYS, self.processes)
        try:
            while self._goes_on():
                key = dice.choice(mine)
                is_delete = numbers[key] > 0 and dice.random() < 0.2
                began = time.monotonic()
                at = _FIRST + timedelta(hours=key)
                if is_delete:
                    self.store.delete("metrics", "a", at, at + timedelta(hours=1))
                else:
                    frame = {"ts": [at], "value": [numbers[key] + 1.0]}
                    self.store.write("metrics", frame, series="a")
                acked = time.monotonic()
                numbers[key] += 1
                self.done.writes.append(
                    Written(self.process, key, numbers[key], is_delete, began, acked)
                )
                if dice.random() < (0.08 if self.process % 2 else 0.5):
                    asked = time.monotonic()
                    given = (self.process, asked, self.store.token())
                    self.tokens[dice.randrange(self.processes)].put(given)
                if dice.random() < 0.02:
                    self.store.refresh("metrics")
                # half of them write little: what they may read is not what they wrote themselves
                time.sleep(dice.uniform(0.0, 0.01) if self.process % 2 else dice.uniform(0.2, 2.0))
        except Exception as error:
            self.done.errors.append(f"write: {error!r}")

    def read(self, seed: float) -> None:
        """Read all keys, as points or bars, with every freshness in turn."""
        dice = random.Random(seed)
        try:
            while self._goes_on():
                promise, token, freshness = self._promise(dice)
                step = dice.choice([None, None, "1h"])
                began = time.monotonic()
                cols = self.store.read(
                    "metrics",
                    "a",
                    *RANGE,
                    step=step,
                    freshness=freshness,
                    cache=dice.random() < 0.8,
                )
                ended = time.monotonic()
                hours = ((cols.instants // 1_000_000) - int(_FIRST.timestamp())) // 3600
                values = cols["value" if step is None else "value_last"]
                numbers = dict(zip(hours.tolist(), map(int, values.tolist()), strict=True))
                seen = Seen(self.process, promise, began, ended, numbers, token, cols.plan.node)
                self.done.reads.append(seen)
        except Exception as error:
            self.done.errors.append(f"read: {error!r}")

    def _promise(self, dice: random.Random) -> tuple[str, tuple[int, float] | None, Any]:
        with self.lock:  # the other reader may take the last one
            inbox = self.tokens[self.process]
            if not inbox.empty():
                process, asked, token = inbox.get()
                return "after", (process, asked), toolkit.after(token)
        promise = dice.choice(["strong", "session", "session", "bounded"])
        return promise, None, toolkit.bounded(BOUND_S) if promise == "bounded" else promise
