"""No answer is older than its freshness allows, whatever happens: random histories by a fake clock.

Two stores that remember and plain SQL change the same points, some of them in transactions that
commit later; logs are cut, connections lost, the server seems to start anew. Points move into
blocks and out of them, of which no cache hears. TRAPS 33, 42.
"""

from __future__ import annotations

from contextlib import ExitStack, nullcontext
from itertools import count
from typing import Any

import fix_history as some
import psycopg
import pytest
from fix_blocks_states import Moving
from fix_cache import memory, same
from fix_history import (
    BAR,
    BORDER,
    CELL,
    DAY,
    HOUR,
    MINUTE,
    NOW,
    Bar,
    Clock,
    Fresh,
    Key,
    Past,
    Version,
    Writer,
    deaf,
    how_to,
    in_buckets,
    inner,
    moment,
    possible_bars,
    set_clock,
)
from fix_servers import Database, share
from fix_stores import cached, open_store
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule, run_state_machine_as_test
from oracle import plain

import toolkit

# a thread of the connection pool may roll its dice while a value is drawn
pytestmark = pytest.mark.filterwarnings("ignore:Do not use the `random` module")

EXAMPLES = settings().max_examples
LONG = 2 * 86_400.0  # seconds; nothing is held for so long
_numbers = count(1)


class History(Moving):
    """Keeps the history of every point, and asks what each road makes of it."""

    stores: tuple[Any, Any]
    cutter: Any
    dsn: str
    sql: psycopg.Connection
    clock: Clock

    def __init__(self) -> None:
        super().__init__()
        number = next(_numbers)
        self.names = {letter: f"s{number}{letter}" for letter in "ab"}
        self.past: dict[Key, Past] = {}
        self.writers: list[Writer] = []
        self.values = count(1)
        self.clock.wall_at = NOW / 1e6 - self.clock.now
        self.resize(64 << 20)
        # one is regular, a minute apart, and held by the day; the other is held by the hour
        for letter, width in (("a", MINUTE), ("b", 0)):
            starts = [BORDER + n * (width or (n * n + 1) * 1_000_003) for n in range(-20, 20)]
            self.write_points(0, [(letter, ts) for ts in dict.fromkeys(starts)])
        found = {s.name: s.id for s in self.cutter.series("metrics")}
        self.ids = {letter: found[name] for letter, name in self.names.items()}

    # -- what happened ----------------------------------------------------------------------------

    def note(self, key: Key, value: float | None, who: int | None = None) -> None:
        self.past.setdefault(key, Past()).versions.append(Version(self.clock(), value, who))

    def locked(self) -> set[Key]:
        """What others have to wait for."""
        return {key for writer in self.writers for key in writer.changes}

    def free(self, wanted: list[Key]) -> list[Key]:
        return [k for k in wanted if k not in self.locked()]

    def there(self, letter: str, low: int, high: int) -> list[Key]:
        return [
            k
            for k, p in self.past.items()
            if k[0] == letter and low <= k[1] < high and p.value is not None
        ]

    # -- through a store --------------------------------------------------------------------------

    def write_points(self, by: int, wanted: list[Key]) -> None:
        frame: dict[str, list[Any]] = {"series": [], "ts": [], "value": []}
        changes = {key: float(next(self.values)) for key in wanted}
        for (letter, ts), value in sorted(changes.items()):
            frame["series"].append(self.names[letter])
            frame["ts"].append(moment(ts))
            frame["value"].append(value)
        self.stores[by].write("metrics", frame)
        for key, value in changes.items():
            self.note(key, value, by)

    @rule(by=some.either, wanted=some.keys, hears=st.booleans())
    def write(self, by: int, wanted: list[Key], hears: bool) -> None:
        """Where the change log cannot be asked right after a write, it must be before a read."""
        if wanted := self.free(wanted):
            if not hears:
                self.ask(by, ("a", "b"), BORDER - HOUR, BORDER + HOUR, None)
            with nullcontext() if hears else deaf(self.stores[by]):
                self.write_points(by, wanted)
            if not hears:
                self.ask(by, ("a", "b"), BORDER - HOUR, BORDER + HOUR, None)

    @rule(by=some.either, letter=some.letters, bounds=some.ranges)
    def delete(self, by: int, letter: str, bounds: list[int]) -> None:
        gone = self.there(letter, *bounds)
        if len(self.free(gone)) == len(gone):
            span = [moment(t) for t in bounds]
            assert self.stores[by].delete("metrics", self.names[letter], *span) == len(gone)
            for key in gone:
                self.note(key, None, by)

    # -- by somebody else -------------------------------------------------------------------------

    def put(self, key: Key, value: float | None, on: psycopg.Connection | None = None) -> None:
        self.thaw()
        letter, ts = key
        client = on or self.sql
        if value is None:
            client.execute(
                "DELETE FROM toolkit.metrics WHERE series_id = %s AND ts = %s",
                [self.ids[letter], moment(ts)],
            )
            return
        client.execute(
            "INSERT INTO toolkit.metrics (series_id, ts, value) VALUES (%s, %s, %s) "
            "ON CONFLICT (series_id, ts) DO UPDATE SET value = excluded.value",
            [self.ids[letter], moment(ts), value],
        )

    @rule(wanted=some.keys, deletes=st.booleans())
    def change_by_sql(self, wanted: list[Key], deletes: bool) -> None:
        for key in self.free(wanted):
            value = None if deletes else float(next(self.values))
            self.put(key, value)
            self.note(key, value)

    @rule(letter=some.letters, bounds=some.ranges)
    def update_by_sql(self, letter: str, bounds: list[int]) -> None:
        wanted = self.there(letter, *bounds)
        if len(self.free(wanted)) == len(wanted):
            self.thaw()
            self.sql.execute(
                "UPDATE toolkit.metrics SET value = value + 0.5 "
                "WHERE series_id = %s AND ts >= %s AND ts < %s",
                [self.ids[letter], *map(moment, bounds)],
            )
            for key in wanted:
                self.note(key, (self.past[key].value or 0.0) + 0.5)

    @precondition(lambda self: len(self.writers) < 2)
    @rule()
    def begin(self) -> None:
        self.writers.append(Writer(self.dsn))

    @precondition(lambda self: self.writers)
    @rule(wanted=some.keys, pick=some.either, deletes=st.booleans())
    def change_in_open_transaction(self, wanted: list[Key], pick: int, deletes: bool) -> None:
        writer = self.writers[pick % len(self.writers)]
        others = {k for w in self.writers if w is not writer for k in w.changes}
        for key in wanted:
            if key not in others:
                value = None if deletes else float(next(self.values))
                self.put(key, value, writer.connection)
                writer.changes[key] = value

    @precondition(lambda self: self.writers)
    @rule(pick=some.either, commits=st.sampled_from([True, True, False]))
    def end(self, pick: int, commits: bool) -> None:
        writer = self.writers.pop(pick % len(self.writers))
        if commits:
            writer.connection.commit()
            for key, value in writer.changes.items():
                self.note(key, value)
        writer.connection.close()

    @rule(wanted=some.keys, pick=some.either, commits=st.sampled_from([True, True, False]))
    def one_ends_later_than_a_look(self, wanted: list[Key], pick: int, commits: bool) -> None:
        """A change whose transaction is older than others that were seen long ago."""
        if len(self.writers) < 2:
            self.begin()
        self.change_in_open_transaction(wanted, pick, deletes=False)
        self.sql.execute("SELECT pg_current_xact_id()")  # one that began later has ended
        self.ask_both_everything()
        self.end(pick, commits)
        self.ask_both_everything()

    # -- what befalls a cache ---------------------------------------------------------------------

    @rule(by=some.seconds)
    def time_passes(self, by: float) -> None:
        self.clock.now += by

    @rule(
        what=st.sampled_from(
            [
                "everything_expires",
                "memory_is_another_size",
                "some_is_forgotten",
                "refresh",
                "change_and_cut_the_log",
                "connections_are_lost",
            ]
        ),
        by=some.either,
        wanted=some.keys,
        pick=st.integers(0, 2),
    )
    def befalls(self, what: str, by: int, wanted: list[Key], pick: int) -> None:
        getattr(self, what)(by, wanted, pick)

    def everything_expires(self, by: int, wanted: list[Key], _: int) -> None:
        question = (by, (wanted[0][0],), BORDER - DAY, BORDER + DAY)
        self.ask(*question, 100_000.0)
        self.clock.now += LONG
        assert self.ask(*question, 3 * LONG).plan.sources.get("memory", 0) == 0
        self.clock.wall_at -= LONG

    def memory_is_another_size(self, by: int, _: list[Key], pick: int) -> None:
        self.resize((2_500, 6_000, 64 << 20)[pick], self.stores[by])

    def resize(self, most: int, *wanted: Any) -> None:
        for store in wanted or self.stores:
            memory(store).most = most
            memory(store).clear()

    def some_is_forgotten(self, by: int, wanted: list[Key], _: int) -> None:
        letter = wanted[0][0]
        self.stores[by].forget("metrics", self.names[letter])
        assert not [k for k, _ in memory(self.stores[by]).held() if k[1] == self.ids[letter]]

    def refresh(self, by: int, *_: Any) -> None:
        self.stores[by].refresh("metrics")

    def change_and_cut_the_log(self, _: int, wanted: list[Key], pick: int) -> None:
        if pick:
            self.ask_both_everything()
        self.change_by_sql(wanted, deletes=False)
        self.cutter.refresh("metrics")
        if pick:
            self.ask_both_everything()

    def ask_both_everything(self) -> None:
        for by in (0, 1):
            self.ask(by, ("a", "b"), some.WIDE[0], some.WIDE[1], "strong")

    @rule(wanted=some.keys, another=st.booleans())
    def server_starts_anew(self, wanted: list[Key], another: bool) -> None:
        """What the log has lost by then, nobody can tell."""
        self.ask_both_everything()
        kept = self.sql.execute("SELECT pruned_to, name FROM toolkit.dataset").fetchall()
        self.change_and_cut_the_log(0, wanted, 0)
        for row in kept:
            self.sql.execute("UPDATE toolkit.dataset SET pruned_to = %s WHERE name = %s", row)
        for store in self.stores:
            for place in inner(store)._roads.cache.follower._places.values():
                if place.snapshot and another:
                    place.identity = "another"
                elif place.snapshot:  # nor do its transactions go on where they were
                    place.snapshot = "4000000000:4000000000:"
        self.ask_both_everything()

    def connections_are_lost(self, *_: Any) -> None:
        ours = [c.info.backend_pid for c in (self.sql, *(w.connection for w in self.writers))]
        others = (
            "FROM pg_stat_activity WHERE datname = current_database() "
            "AND backend_type = 'client backend' AND pid <> ALL (%s)"
        )
        while self.sql.execute(f"SELECT pg_terminate_backend(pid) {others}", [ours]).fetchall():
            pass

    # -- what must hold ---------------------------------------------------------------------------

    def ask(
        self,
        by: int,
        asked: tuple[str, ...],
        low: int,
        high: int,
        fresh: Fresh,
        step: tuple[str | None, str] = (None, "UTC"),
        **options: Any,
    ) -> Any:
        """Read, and hold every value against all that it may be."""
        how = toolkit.bounded(fresh) if isinstance(fresh, float) else fresh
        age = fresh if isinstance(fresh, float) else some.MAX_AGE if fresh is None else 0.0
        since = self.clock() - age
        if options.get("cache") is False:
            since, fresh = self.clock(), "strong"
        cols = self.stores[by].read(
            "metrics",
            [self.names[letter] for letter in asked],
            moment(low),
            moment(high),
            step=step[0],
            tz=step[1],
            freshness=how,
            **options,
        )
        letter_of = {name: letter for letter, name in self.names.items()}
        found: dict[Key, Bar] = {}
        for row in plain(cols):
            found[letter_of[row.series], row.ts] = tuple(
                row.values[c] for c in (BAR if step[0] else ("value",))
            )
        may_be = self.allowed(asked, low, high, since, None if isinstance(fresh, float) else by)
        wrong = {}
        for key, points in in_buckets(may_be, *step).items():
            bars = possible_bars(points, is_bar=step[0] is not None)
            value = found.pop(key, None)
            if bars is not None and value not in bars:
                wrong[key] = (value, bars)
        assert not wrong, (wrong, self.story(wrong), cols.plan)
        assert not found, (found, cols.plan)
        return cols

    def allowed(
        self, asked: tuple[str, ...], low: int, high: int, since: float, own: int | None
    ) -> dict[Key, set[float | None]]:
        return {
            key: past.allowed(since, own)
            for key, past in sorted(self.past.items())
            if key[0] in asked and low <= key[1] < high
        }

    def story(self, wrong: dict[Key, Any]) -> Any:
        return {k: self.past[k].versions[-4:] for k in wrong if k in self.past}, self.clock.now

    @rule(
        questions=st.lists(
            st.tuples(
                some.either, some.asked, some.bounds, some.freshnesses, some.steps, some.strategies
            ),
            min_size=1,
            max_size=4,
        )
    )
    def read(self, questions: list[Any]) -> None:
        for by, letters, (low, high), fresh, step, strategy in questions:
            self.ask(by, letters, low, high, fresh, step, **how_to(strategy, step))

    @rule(
        questions=st.lists(
            st.tuples(some.either, some.letters, some.hours, some.freshnesses),
            min_size=1,
            max_size=4,
        )
    )
    def read_what_is_held_in_one_piece(self, questions: list[Any]) -> None:
        for by, letter, (low, high), fresh in questions:
            for _ in range(3):  # it is fetched, and held, and there is a shorter way
                self.ask(by, (letter,), low, high, fresh)

    @rule(
        by=some.either,
        bounds=some.bounds,
        step=some.steps,
        strategy=some.strategies,
    )
    def strong_is_what_the_database_says(
        self, by: int, bounds: list[int], step: tuple[str | None, str], strategy: str
    ) -> None:
        how = how_to(strategy, step)
        low, high = bounds
        strong = self.ask(by, ("a", "b"), low, high, "strong", step, **how)
        same(strong, self.ask(by, ("a", "b"), low, high, "strong", step, cache=False, **how))

    @rule(by=some.either, wanted=some.keys, fresh=some.freshnesses, hears=st.booleans())
    def change_during_a_fetch(self, by: int, wanted: list[Key], fresh: Fresh, hears: bool) -> None:
        """What was read before a commit must not be kept for those who know of it."""
        roads = inner(self.stores[by])._roads
        fetcher, real = roads.reader.fetcher, roads.reader.fetcher.fetch
        done: list[bool] = []

        async def slow(work: Any) -> Any:
            found = await real(work)
            if not done:
                done.append(True)
                self.change_by_sql(wanted, deletes=False)
                if hears:
                    await roads.cache.follower.know(work.entry, self.clock())
            return found

        fetcher.fetch = slow
        try:
            self.ask(by, ("a", "b"), BORDER - HOUR, BORDER + HOUR, fresh)
        finally:
            del fetcher.fetch
        self.ask(by, ("a", "b"), BORDER - HOUR, BORDER + HOUR, "strong")

    @precondition(lambda self: not self.writers)
    @rule(
        by=some.either,
        key=st.tuples(some.letters, some.times),
        step=st.sampled_from([None, "5m", "1h"]),
    )
    def only_what_changed_is_dropped(self, by: int, key: Key, step: str | None) -> None:
        store, letter, ts = self.stores[by], key[0], key[1]
        for _ in range(2):  # the first look may find much that is old
            self.ask(by, ("a", "b"), BORDER - DAY, BORDER + DAY, "strong", (step, "UTC"))
        self.look(store)  # reads go past a small memory, and then nobody has looked
        before = memory(store).held()
        self.change_by_sql([key], deletes=False)
        self.look(store)
        gone = {k for k, _ in before} - {k for k, _ in memory(store).held()}
        cell = ts - ts % CELL
        expected = {
            k
            for k, held in before
            if k[1] == self.ids[letter] and held.start < cell + CELL and held.upto > cell
        }
        assert gone == expected

    def look(self, store: Any) -> None:
        roads = inner(store)._roads
        entry = roads.directory.catalog.entry("metrics")
        know = roads.cache.follower.know(entry, self.clock())
        store.run(know) if store is not inner(store) else toolkit.drivers.drive(know)

    def teardown(self) -> None:
        while self.writers:
            self.end(0, True)
        self.read_what_is_held_in_one_piece(
            [
                (by, letter, some.HOURS[at], None)
                for by in (0, 1)
                for letter in "ab"
                for at in (2, 4)
            ]
        )
        for by in (0, 1):
            self.ask(by, ("a", "b"), some.WIDE[0], some.WIDE[1], None)
            for step in ((None, "UTC"), ("5m", "UTC"), ("1d", "Europe/Berlin")):
                self.strong_is_what_the_database_says(by, some.WIDE, step, "auto")


@pytest.mark.usefixtures("small_blocks")
def test_no_answer_is_older_than_its_freshness_allows(
    database: Database, sql: psycopg.Connection
) -> None:
    low, high = moment(BORDER - 20 * DAY), moment(BORDER + 20 * DAY)
    sql.execute("SELECT ensure_partitions('metrics', %s, %s)", [low, high])
    clock = Clock()
    with ExitStack() as stack:
        options = cached(database.dsn, max_age=some.MAX_AGE, ahead=False)  # the clock stands still
        opened = [
            stack.enter_context(open_store(colour, options)) for colour in ("blocking", "asyncio")
        ]
        cutter = stack.enter_context(
            open_store("blocking", cached(database.dsn, memory=0, keep_log=0))
        )
        for store in opened:
            set_clock(store, clock)

        class OnThisDatabase(History):
            pass

        OnThisDatabase.stores, OnThisDatabase.cutter = (opened[0], opened[1]), cutter
        OnThisDatabase.dsn, OnThisDatabase.sql = database.dsn, sql
        OnThisDatabase.clock = clock
        run_state_machine_as_test(
            OnThisDatabase,
            settings=settings(
                max_examples=share(EXAMPLES // 2, database.version),
                stateful_step_count=30,
                phases=set(Phase) - {Phase.explain},
                deadline=None,
                suppress_health_check=list(HealthCheck),
            ),
        )
