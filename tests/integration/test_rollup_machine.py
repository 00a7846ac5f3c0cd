"""A rollup answer equals the points' at every moment: random histories, checked at each step.

Changes come from the store and from clients that never heard of it, from transactions that stay
open, from refreshes that stop half way. Points move into blocks and out of them meanwhile; who
never heard of the toolkit changes rows only. TRAPS 16, 17, 18, 20, 21, 57.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from itertools import count
from typing import Any

import psycopg
import pytest
from fix_blocks_states import ACTS, pack
from fix_servers import Database, share
from fix_stores import READINGS, cached, create, open_store
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from oracle import EPOCH, Points, Question, Values, answer, differences, us_of
from points import frame_of

from toolkit import refresher

# a thread of the connection pool may roll its dice while a value is drawn
pytestmark = pytest.mark.filterwarnings("ignore:Do not use the `random` module")

EXAMPLES = settings.default.max_examples
MINUTE = 60_000_000
BASE = us_of(datetime(2024, 2, 29, 23, tzinfo=UTC))  # an hour before a partition ends
PARTITIONS = ("readings_p20240201", "readings_p20240301")
BORDER = us_of(datetime(2024, 3, 1, tzinfo=UTC))
COLUMNS = ("ts", "seq", "level", "hits", "mood")
SLICES = (timedelta(seconds=1), timedelta(minutes=40), timedelta(days=400))
_numbers = count(1)

# a few minutes on either side of the partitions' border, and some days away
times = st.one_of(
    st.integers(0, 119).map(lambda n: BASE + n * MINUTE),
    st.integers(-9, 9).map(lambda n: BASE + n * 86_400_000_000 + n),
)
values = st.fixed_dictionaries(
    {
        "level": st.none() | st.sampled_from([0.0, -0.0, 1.5, -2.25, 1e15, 0.1]),
        "hits": st.none() | st.integers(-9, 9),
        "mood": st.none() | st.sampled_from("xyz"),
    }
)
whole = {c.name: None for c in READINGS.columns}
some = st.lists(st.tuples(st.sampled_from("ab"), times, st.integers(0, 1), values), max_size=6)
ranges = st.tuples(times, times).map(sorted)


class Stop(Exception):
    """A refresh is killed here."""


class Writer:
    """A client with a transaction that stays open; ``changes`` happen when it commits."""

    def __init__(self, dsn: str, number: int) -> None:
        self.connection = psycopg.connect(dsn)
        self.seq = count(1_000 * (number + 1))
        self.changes: list[Callable[[Points], object]] = []


class History(RuleBasedStateMachine):
    """Keeps what the table should hold in a dict, and asks every road for it."""

    store: Any
    other: Any
    dsn: str
    sql: psycopg.Connection

    def __init__(self) -> None:
        super().__init__()
        number = next(_numbers)
        self.names = {letter: f"s{number}{letter}" for letter in "ab"}
        self.points: Points = {}
        self.writers: list[Writer] = []
        self.is_cold = False
        first = {(name, BASE, 0): dict(whole) for name in self.names.values()}
        self.put(first)
        self.put({(self.names["a"], BORDER, 0): dict(whole)})
        found = {s.name: s.id for s in self.store.series("readings")}
        self.ids = {name: found[name] for name in self.names.values()}

    def put(self, points: Points, store: Any = None) -> None:
        (store or self.store).write("readings", frame_of(points, READINGS))
        self.points.update(points)

    def named(self, rows: list[tuple[str, int, int, Values]]) -> Points:
        return {(self.names[s], ts, seq): whole | v for s, ts, seq, v in rows}

    def run(self, statement: str, *params: Any, on: psycopg.Connection | None = None) -> None:
        (on or self.sql).execute(statement, params)  # type: ignore[call-overload]

    # -- through the store ------------------------------------------------------------------------

    @rule(rows=some.filter(bool), asyncio=st.booleans())
    def write(self, rows: list[Any], asyncio: bool) -> None:
        self.put(self.named(rows), self.other if asyncio else self.store)

    @rule(at=st.integers(0, 9), length=st.integers(2, 40), letter=st.sampled_from("ab"), v=values)
    def write_a_run(self, at: int, length: int, letter: str, v: Values) -> None:
        # one row in the change log that reaches far; others begin where it does
        starts = [BASE + (7 * at + i) * MINUTE for i in range(length)]
        self.put(self.named([(letter, ts, 0, v) for ts in starts]))

    @rule(pick=st.integers(0, 1_000), change=values)
    def overwrite(self, pick: int, change: Values) -> None:
        if keys := [k for k in self.points if k[2] < 1_000]:
            key = keys[pick % len(keys)]
            self.put({key: self.points[key] | change})

    @rule(bounds=ranges, letter=st.sampled_from("ab"))
    def delete(self, bounds: list[int], letter: str) -> None:
        low, high = bounds
        gone = self.inside(self.names[letter], low, high)
        moments = [EPOCH + timedelta(microseconds=t) for t in bounds]
        assert self.store.delete("readings", self.names[letter], *moments) == len(gone)
        self.forget(gone)

    def inside(self, name: str | None, low: int, high: int) -> list[tuple[str, int, int]]:
        return [k for k in self.points if name in (None, k[0]) and low <= k[1] < high]

    def forget(self, keys: list[tuple[str, int, int]]) -> None:
        for key in keys:
            del self.points[key]

    # -- by somebody else -------------------------------------------------------------------------

    def insert(self, on: psycopg.Connection, name: str, ts: int, seq: int, v: Values) -> None:
        month = PARTITIONS[ts >= BORDER]
        moment = EPOCH + timedelta(microseconds=ts)
        self.run(
            "SELECT toolkit.ensure_partitions('readings', %s, %s)",
            moment,
            moment + timedelta(seconds=1),
        )
        table = month if seq % 2 and abs(ts - BORDER) < 20 * 86_400_000_000 else "readings"
        self.run(
            f"INSERT INTO toolkit.{table} (series_id, ts, seq, level, hits, mood) "
            "VALUES (%s, %s, %s, %s, %s, %s) "
            "ON CONFLICT (series_id, ts, seq) DO UPDATE SET level = excluded.level, "
            "hits = excluded.hits, mood = excluded.mood",
            *(self.ids[name], moment, seq, v["level"], v["hits"], v["mood"]),
            on=on,
        )

    @rule(rows=some.filter(bool))
    def insert_by_sql(self, rows: list[Any]) -> None:
        # into the parent and into a partition by name: TRAPS 57
        for letter, ts, seq, v in rows:
            key = (self.names[letter], ts, seq)
            self.insert(self.sql, *key, v)
            self.points[key] = self.points.get(key, whole) | v

    def thaw(self) -> None:
        """Make rows of all points: others change nothing else."""
        if self.is_cold:
            self.other.decompress("readings", [*self.ids])
            self.is_cold = False

    @rule(bounds=ranges, add=st.integers(1, 5))
    def update_by_sql(self, bounds: list[int], add: int) -> None:
        self.thaw()
        low, high = (EPOCH + timedelta(microseconds=t) for t in bounds)
        for name, number in self.ids.items():
            self.run(
                "UPDATE toolkit.readings SET hits = coalesce(hits, 0) + %s "
                "WHERE series_id = %s AND ts >= %s AND ts < %s AND seq < 1000",
                *(add, number, low, high),
            )
            for key in self.inside(name, *bounds):
                if key[2] < 1_000:
                    self.points[key] = self.points[key] | {
                        "hits": (self.points[key]["hits"] or 0) + add
                    }

    @rule(pick=st.integers(0, 1_000), to=times)
    def move_by_sql(self, pick: int, to: int) -> None:
        """A point changes its key: its old bucket and its new one have changed."""
        if keys := [k for k in self.points if k[2] < 1_000]:
            old = keys[pick % len(keys)]
            new = (old[0], to, 900 + pick % 2)
            if new in self.points:
                return
            self.thaw()
            moment = EPOCH + timedelta(microseconds=to)
            self.run(
                "SELECT toolkit.ensure_partitions('readings', %s, %s)",
                moment,
                moment + timedelta(seconds=1),
            )
            self.run(
                "UPDATE toolkit.readings SET ts = %s, seq = %s "
                "WHERE series_id = %s AND ts = %s AND seq = %s",
                *(moment, new[2], self.ids[old[0]], EPOCH + timedelta(microseconds=old[1]), old[2]),
            )
            self.points[new] = self.points.pop(old)

    # -- transactions that stay open --------------------------------------------------------------

    @precondition(lambda self: len(self.writers) < 2)
    @rule()
    def begin(self) -> None:
        self.writers.append(Writer(self.dsn, len(self.writers)))

    @precondition(lambda self: self.writers)
    @rule(rows=some.filter(bool), pick=st.integers(0, 1), gives_up=st.booleans())
    def write_in_open_transaction(self, rows: list[Any], pick: int, gives_up: bool) -> None:
        writer = self.writers[pick % len(self.writers)]
        if gives_up:
            self.run("SAVEPOINT before", on=writer.connection)
        for letter, ts, _, v in rows:
            seq = next(writer.seq)
            while (self.names[letter], ts, seq) in self.points:
                seq = next(writer.seq)
            self.insert(writer.connection, self.names[letter], ts, seq, v)
            if not gives_up:
                key, point = (self.names[letter], ts, seq), whole | v
                writer.changes.append(lambda p, key=key, point=point: p.update({key: point}))
        if gives_up:
            self.run("ROLLBACK TO SAVEPOINT before", on=writer.connection)

    @precondition(lambda self: self.writers)
    @rule(pick=st.integers(0, 1), commits=st.booleans())
    def end(self, pick: int, commits: bool) -> None:
        writer = self.writers.pop(pick % len(self.writers))
        if commits:
            writer.connection.commit()
            for change in writer.changes:
                change(self.points)
        writer.connection.close()

    # -- partitions -------------------------------------------------------------------------------

    @precondition(lambda self: not self.writers)
    @rule(which=st.integers(0, 1))
    def drop_partition(self, which: int) -> None:
        months = ("2024-02-01T00:00Z", "2024-03-01T00:00Z", "2024-04-01T00:00Z")
        self.store.drop_partitions("readings", months[which], months[which + 1])
        self.forget_month(which)

    @precondition(lambda self: not self.writers)
    @rule(which=st.integers(0, 1))
    def truncate_partition(self, which: int) -> None:
        found = self.sql.execute("SELECT to_regclass(%s)", [f"toolkit.{PARTITIONS[which]}"])
        if found.fetchone() != (None,):
            self.thaw()
            self.run(f"TRUNCATE toolkit.{PARTITIONS[which]}")
            self.forget_month(which)

    def forget_month(self, which: int) -> None:
        month = 31 * 86_400_000_000
        low = BORDER if which else BORDER - 29 * 86_400_000_000
        self.forget(self.inside(None, low, low + month if which else BORDER))

    # -- blocks -----------------------------------------------------------------------------------

    @rule(act=st.sampled_from(ACTS[1:]), part=st.integers(0, 1_000), asyncio=st.booleans())
    def move(self, act: str, part: int, asyncio: bool) -> None:
        """Points become blocks, or rows again, some or all of them."""
        pack(self.other if asyncio else self.store, READINGS, self.points, act, part)
        self.is_cold = True

    # -- refreshes --------------------------------------------------------------------------------

    @rule(slice_=st.sampled_from(SLICES))
    def refresh(self, slice_: timedelta) -> None:
        refresher.SLICE = slice_
        refresher.HEAD = datetime.now(UTC) - datetime(2024, 3, 1, tzinfo=UTC)
        self.store.refresh("readings")

    @rule(slice_=st.sampled_from(SLICES[:2]), slices=st.integers(1, 6))
    def refresh_is_killed(self, slice_: timedelta, slices: int) -> None:
        refresher.SLICE = slice_
        left = iter(range(slices - 1))

        def stop(step: str, buckets: int) -> None:
            if next(left, None) is None:
                raise Stop

        with contextlib.suppress(Stop):
            self.other.refresh("readings", stop)

    # -- what must hold ---------------------------------------------------------------------------

    def check(
        self,
        step: str,
        start: int,
        end: int,
        strategy: str,
        tz: str = "UTC",
        cache: bool = True,
    ) -> Any:
        question = Question(tuple(self.names.values()), start, end, step, tz)
        cols = self.store.read(
            "readings",
            question.series,
            EPOCH + timedelta(microseconds=start),
            EPOCH + timedelta(microseconds=end),
            step=step,
            strategy=strategy,
            tz=tz,
            freshness="strong",
            cache=cache,
        )
        wrong = differences(answer(self.points, question, READINGS), cols, READINGS)
        assert not wrong, (cols.plan, wrong)
        return cols

    @invariant()
    def every_level_answers_what_the_points_do(self) -> None:
        for step in READINGS.ladder:
            whole = (BASE - 40 * 1440 * MINUTE, BASE + 40 * 1440 * MINUTE)
            self.check(step, *whole, "downsampled", cache=len(self.points) % 2 == 0)

    @rule(
        bounds=ranges,
        step=st.sampled_from(["5m", "30m", "2h", "1d", "1w", "1M"]),
        strategy=st.sampled_from(["downsampled", "aggregated", "direct"]),
        tz=st.sampled_from(["UTC", "Europe/Berlin", "Asia/Kathmandu"]),
        cache=st.booleans(),
    )
    def ask(self, bounds: list[int], step: str, strategy: str, tz: str, cache: bool) -> None:
        self.check(step, *bounds, strategy, tz, cache)

    def teardown(self) -> None:
        while self.writers:
            self.end(0, True)
        refresher.SLICE = SLICES[-1]
        self.store.refresh("readings")
        low = us_of(datetime(2024, 1, 1, tzinfo=UTC))
        for step in READINGS.ladder:
            cols = self.check(step, low, low + 128 * 1440 * MINUTE, "downsampled", cache=False)
            assert cols.plan.sources["points"] == 0  # all of it from the rollup
        assert self.sql.execute("SELECT count(*) FROM toolkit.readings_log").fetchone() == (0,)


@pytest.mark.usefixtures("small_blocks")
def test_a_rollup_answers_what_the_points_do_at_every_moment(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    create(database, READINGS)
    # put back at the end
    monkeypatch.setattr(refresher, "SLICE", refresher.SLICE)
    monkeypatch.setattr(refresher, "HEAD", refresher.HEAD)
    with (
        open_store("blocking", cached(database.dsn, keep_log=0)) as store,
        open_store("asyncio", database.dsn) as other,
        psycopg.connect(database.dsn, autocommit=True) as sql,
    ):
        sql.execute("SET timezone = 'Asia/Kathmandu'")

        class OnThisDatabase(History):
            pass

        OnThisDatabase.store, OnThisDatabase.other = store, other
        OnThisDatabase.dsn, OnThisDatabase.sql = database.dsn, sql
        run_state_machine_as_test(
            OnThisDatabase,
            settings=settings(
                max_examples=share(EXAMPLES // 4, database.version),
                stateful_step_count=25,
                phases=set(Phase) - {Phase.explain},
                deadline=None,
                suppress_health_check=list(HealthCheck),
            ),
        )
