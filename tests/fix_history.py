"""What a history of writes and reads is told by: times, a clock, the past of points, writers."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from itertools import product
from typing import Any

import psycopg
from hypothesis import strategies as st
from oracle import EPOCH, bucket, us_of

from toolkit.errors import Unavailable

MINUTE = 60_000_000
CELL, HOUR, DAY = 5 * MINUTE, 60 * MINUTE, 1_440 * MINUTE
BORDER = us_of(datetime(2024, 3, 1, tzinfo=UTC))  # of days and of hours; not of partitions
NOW = BORDER + 47 * MINUTE  # on the wall when a history begins: the hour after it is open
MOST_CHOICES = 400
FOLLOWS = b"pg_current_snapshot() AS now"
WIDE = [BORDER - 2 * DAY, BORDER + 2 * DAY + HOUR]  # what is wider goes past the cache
MAX_AGE = 10.0
Key = tuple[str, int]
Bar = tuple[float, ...] | None
Fresh = str | float | None

# the last and the first minutes of hours and of the day, and some days away
times = st.one_of(
    st.sampled_from([-61, -60, -59, -6, -5, -1, 0, 1, 4, 5, 30, 44, 59, 60, 61, 119]).map(
        lambda n: BORDER + n * MINUTE
    ),
    st.sampled_from([-9, -2, -1, 1, 2, 9]).map(lambda n: BORDER + n * DAY + abs(n) * MINUTE),
)
letters = st.sampled_from("ab")
either = st.integers(0, 1)
keys = st.lists(st.tuples(letters, times), min_size=1, max_size=4, unique=True)
ranges = st.tuples(times, times).map(sorted)
asked = st.sampled_from([("a",), ("b",), ("a", "b")])
bounds = st.one_of(ranges, st.just(WIDE))
HOURS = [
    (BORDER + n * HOUR, BORDER + n * HOUR + width) for n in (-24, -1, 0, 1) for width in (HOUR, DAY)
]
hours = st.sampled_from(HOURS)
seconds = st.sampled_from([0.01, 1.0, MAX_AGE - 1, MAX_AGE, MAX_AGE + 1, 45.0, 4_000.0])
freshnesses = st.sampled_from([None, None, "strong", 0.0, 3.0, 30.0, 100_000.0])
_FIXED = (("5m", "UTC"), ("15m", "UTC"), ("1h", "UTC"), ("1h", "Asia/Kathmandu"))
_DAYS = tuple(("1d", zone) for zone in ("UTC", "Europe/Berlin", "Asia/Kathmandu"))
steps = st.sampled_from([(None, "UTC"), (None, "UTC"), *_FIXED, *_DAYS])
strategies = st.sampled_from(["auto", "auto", "direct", "downsampled", "aggregated"])


@dataclass
class Clock:
    """Time that passes when it is told to, and a little whenever somebody looks."""

    now: float = 1_000.0
    wall_at: float = 0.0  # what the wall shows at 0

    def __call__(self) -> float:
        self.now += 1e-6
        return self.now

    def wall(self) -> float:
        return self.wall_at + self.now


@dataclass(frozen=True)
class Version:
    """What a point was from some time on; ``value`` None: nothing was there."""

    since: float
    value: float | None
    who: int | None


@dataclass
class Past:
    """All that a point has been."""

    versions: list[Version] = field(default_factory=lambda: [Version(-math.inf, None, None)])

    @property
    def value(self) -> float | None:
        return self.versions[-1].value

    def allowed(self, since: float, own: int | None) -> set[float | None]:
        """What it was at some moment not before ``since``; ``own``: nor before that store's own."""
        # the version that ends first at or after `since`
        first = bisect_left([v.since for v in self.versions[1:]], since)
        mine = (i for i, v in enumerate(self.versions) if own is not None and v.who == own)
        return {v.value for v in self.versions[max(first, *mine, 0) :]}


class Writer:
    """A client with a transaction that stays open, and what it will have changed."""

    def __init__(self, dsn: str) -> None:
        self.connection = psycopg.connect(dsn)
        self.connection.execute("SELECT pg_current_xact_id()")  # in the order in which they began
        self.changes: dict[Key, float | None] = {}


BAR = ("value_count", "value_min", "value_max", "value_sum", "value_first", "value_last")


def in_buckets(
    points: dict[Key, set[float | None]], step: str | None, tz: str
) -> dict[Key, list[set[float | None]]]:
    """Sort what points may be by the bar that they are in; in order of time."""
    found: dict[Key, list[set[float | None]]] = {}
    for (letter, ts), values in points.items():
        at = ts if step is None else bucket(ts, step, tz)
        found.setdefault((letter, at), []).append(values)
    return found


def possible_bars(points: list[set[float | None]], *, is_bar: bool) -> set[Bar] | None:
    """Return every bar that points may make; None where those are too many to say."""
    if math.prod(map(len, points)) > MOST_CHOICES:
        return None
    bars: set[Bar] = set()
    for chosen in product(*points):
        values = [v for v in chosen if v is not None]
        if not values:
            bars.add(None)
        elif is_bar:
            ends = (min(values), max(values), sum(values), values[0], values[-1])
            bars.add((len(values), *ends))
        else:
            bars.add((values[0],))
    return bars


def how_to(strategy: str, step: tuple[str | None, str]) -> dict[str, Any]:
    """A strategy where it can answer."""
    if strategy == "auto" or step[0] is None or (strategy == "downsampled" and step[1] != "UTC"):
        return {}
    return {"strategy": strategy}


def moment(us: int) -> datetime:
    return EPOCH + timedelta(microseconds=us)


def inner(store: Any) -> Any:
    """The store itself, where it is called without await."""
    return getattr(store, "store", store)


@contextmanager
def deaf(store: Any) -> Iterator[None]:
    """Let a store's looks at the change log fail."""
    driver = inner(store)._roads.driver
    real = driver.fetch

    async def fetch(statement: bytes, *args: Any, **options: Any) -> Any:
        if FOLLOWS in statement:
            raise Unavailable("gone for a moment")
        return await real(statement, *args, **options)

    driver.fetch = fetch
    try:
        yield
    finally:
        del driver.fetch


def set_clock(store: Any, clock: Clock) -> None:
    """Let everything about a store's cache go by another clock."""
    cache = inner(store)._roads.cache
    cache._clock = cache.follower._clock = clock
    cache._wall = clock.wall
    cache._policy = replace(cache._policy, wall=clock.wall)
