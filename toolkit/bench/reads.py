"""The read cases: small, large, from rollups, and behind a long change log."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np

from toolkit.bench.ground import MINUTE, NOISY, Ground, at, bars
from toolkit.bench.measure import Contender, Result, Target, Timing, by_turns, compare
from toolkit.bench.peers import ADBC, PANDAS, PSYCOPG
from toolkit.dataset import CANDLES
from toolkit.timegrid import Grid, Span, Step, iso, to_datetime, to_us

OURS = "store.read"
_SERIES = "B0"
_HOURS_OF_LOG = 24 * 365 * 9
_LOG_COMMITS = 20


def read_small(ground: Ground) -> Result:
    """Read a thousand points at random places of a series."""
    points = ground.sizes.small_read
    statements, arguments = windows(ground, points)
    contenders = [
        Contender(OURS, lambda turn: ground.store.read("candles", _SERIES, *arguments(turn))),
        Contender(ADBC, lambda turn: ground.peers.arrow(statements(turn))),
        Contender(PSYCOPG, lambda turn: ground.peers.rows(statements(turn))),
        Contender(PANDAS, lambda turn: ground.peers.frame(statements(turn)), every=4),
    ]
    found = by_turns(contenders, ground.sizes.turns)
    targets = {ADBC: Target(1.2), PANDAS: Target(10.0)}
    compared = compare(found[OURS], found, targets)
    return Result("read_small", f"{points:,} points × 6 columns", points, found[OURS], compared)


def client_cpu(ground: Ground) -> Result:
    """Take the client CPU of a small read beyond that of its statement on a bare connection."""
    points = ground.sizes.small_read
    _, arguments = windows(ground, points)
    statement = ground.store.explain("candles", _SERIES, *arguments(0)).statement.encode()
    series_id = ground.id_of("candles", _SERIES)
    named = {"id": series_id, "ids": [series_id]}  # whichever the statement has
    spans = [Span.between(*arguments(turn)) for turn in range(ground.sizes.turns)]
    months = Grid(Step.parse(CANDLES.partition))
    ranges = [
        {
            "start": to_datetime(s.start),
            "end": to_datetime(s.end),
            "cold_start": to_datetime(months.floor_one(s.start)),
            "frozen": None,
        }
        for s in spans
    ]

    def bare(turn: int) -> object:
        cursor = ground.peers.psycopg.cursor(binary=True)
        return cursor.execute(statement, {**named, **ranges[turn]}).fetchall()

    contenders = [
        Contender(OURS, lambda turn: ground.store.read("candles", _SERIES, *arguments(turn))),
        Contender("bare statement", bare),
    ]
    found = by_turns(contenders, ground.sizes.turns, time.thread_time)
    ours, theirs = found[OURS], found["bare statement"]
    more = Timing(
        "more CPU", ours.turns, (ours.p50 - theirs.p50) * 1000, (ours.p99 - theirs.p99) * 1000
    )
    what = f"client CPU of {points:,} points beyond the bare statement"
    return Result("client_cpu", what, points, more, unit="µs", ceiling=70.0)


def read_large(ground: Ground) -> Result:
    """Read half a million points from rows."""
    points = min(ground.sizes.large_read, ground.sizes.minutes)
    statements, arguments = windows(ground, points)
    contenders = [
        Contender(OURS, lambda turn: ground.store.read("candles", _SERIES, *arguments(turn))),
        Contender(ADBC, lambda turn: ground.peers.arrow(statements(turn))),
        Contender(PSYCOPG, lambda turn: ground.peers.rows(statements(turn)), every=3),
        Contender(PANDAS, lambda turn: ground.peers.frame(statements(turn)), every=6),
    ]
    found = by_turns(contenders, ground.sizes.large_turns)
    compared = compare(found[OURS], found, {ADBC: Target(1.0)})
    return Result("read_large", f"{points:,} points × 6 columns", points, found[OURS], compared)


def read_hours(ground: Ground) -> Result:
    """Read a year of minutes as hourly bars, from the rollup."""
    start, end = at(0), at(ground.sizes.minutes)
    questions = ground.questions("candles", _SERIES)
    from_points, packed = questions.hours(start, end), questions.packed_hours(start, end)

    def read(strategy: str) -> Callable[[int], object]:
        return lambda turn: ground.store.read(
            "candles", _SERIES, start, end, step="1h", strategy=strategy
        )

    contenders = [
        Contender(OURS, read("downsampled")),
        Contender("bare rollup statement", lambda turn: ground.peers.rows(packed)),
        Contender("SQL over the points", lambda turn: ground.peers.rows(from_points), every=8),
        Contender("store.read, aggregated", read("aggregated"), every=8),
    ]
    found = by_turns(contenders, ground.sizes.turns)
    targets = {
        "SQL over the points": Target(20.0),
        "bare rollup statement": Target(1.3, is_cost=True),
    }
    hours = ground.sizes.minutes // 60
    what = f"{ground.sizes.minutes:,} minutes as {hours:,} hourly bars"
    return Result("read_hours", what, hours, found[OURS], compare(found[OURS], found, targets))


def read_behind_log(ground: Ground) -> Result:
    """Read hourly bars while a million change-log rows wait for a refresh."""
    sizes = ground.sizes
    minutes = sizes.buckets * 60
    for number, name in enumerate(ground.names()):
        ground.store.write(NOISY.name, bars(minutes, number), series=name)
    ground.store.refresh(NOISY.name)
    _fill_log(ground)
    for table in ("noisy", "noisy_log", "noisy_1h"):
        ground.execute("VACUUM (ANALYZE) {table}", table)
    start, end = at(0), at(min(minutes, sizes.minutes))

    def read(dataset: str) -> Callable[[int], object]:
        return lambda turn: ground.store.read(
            dataset, _SERIES, start, end, step="1h", strategy="downsampled"
        )

    contenders = [
        Contender(OURS, read(NOISY.name)),
        Contender("nothing to follow", read("candles")),
    ]
    found = by_turns(contenders, sizes.turns)
    targets = {"nothing to follow": Target(1.5, is_cost=True)}
    what = f"{sizes.buckets:,} hourly bars behind {sizes.log_rows:,} change-log rows"
    compared = compare(found[OURS], found, targets)
    return Result("read_behind_log", what, sizes.buckets, found[OURS], compared)


def windows(
    ground: Ground, points: int
) -> tuple[Callable[[int], str], Callable[[int], tuple[str, str]]]:
    """Return for each turn the peers' statement and our arguments: the same random window."""
    generator = np.random.default_rng(points)
    last = ground.sizes.minutes - points
    firsts = generator.integers(0, last + 1, ground.sizes.turns)
    ranges = [(at(int(f)), at(int(f) + points)) for f in firsts]
    questions = ground.questions("candles", _SERIES)
    texts = [questions.points(*r) for r in ranges]
    return lambda turn: texts[turn], lambda turn: ranges[turn]


def _fill_log(ground: Ground) -> None:
    """Log changes of five minutes each, of many series over nine years, in some commits.

    The series that is read gets its share, in its range and outside it.
    """
    first = iso(to_us(at(0)) - _HOURS_OF_LOG // 2 * 60 * MINUTE)
    ids = [ground.id_of(NOISY.name, name) for name in ground.names()]
    rows = ground.sizes.log_rows // _LOG_COMMITS
    for commit in range(_LOG_COMMITS):
        ground.execute(
            """
            INSERT INTO {table} (series_id, lo, hi)
            SELECT {low} + n % {series}, lo, lo + interval '5 minutes'
            FROM (SELECT setseed({seed})) AS seed
            CROSS JOIN generate_series(1, {rows}) AS n
            CROSS JOIN LATERAL (
                SELECT {first}::timestamptz
                       + interval '5 minutes' * floor(random() * {cells}) AS lo
                WHERE n IS NOT NULL
            ) AS t""",
            "noisy_log",
            low=min(ids),
            series=ground.sizes.log_series,
            seed=commit / _LOG_COMMITS,
            rows=rows,
            first=first,
            cells=_HOURS_OF_LOG * 12,
        )
