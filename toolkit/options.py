"""What can be told of the parts of a store, each with its defaults."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from toolkit.errors import ConfigError
from toolkit.rules import CacheRule
from toolkit.timegrid import Step


@dataclass(frozen=True, slots=True)
class PoolOptions:
    """How connections are kept; times in seconds."""

    min_size: int = 2
    max_size: int = 20
    connect_timeout: float = 3.0
    pool_timeout: float = 30.0
    statement_timeout: float = 30.0
    max_idle: float = 30.0
    application_name: str = "toolkit"


@dataclass(frozen=True, slots=True)
class Limits:
    """What the chooser goes by (``by``): prices, or thresholds of points or buckets of a series.

    ``buckets`` and ``chart_points`` hold for both, and so do the others where ``step="auto"``.
    """

    by: str = "price"
    direct: int = 1_000
    aggregated: int = 10_000
    buckets: int = 1_000
    chart_points: int = 200_000


def _price(us: float, what: str) -> Any:
    return field(default=us, metadata={"what": what})


@dataclass(frozen=True, slots=True)
class Prices:
    """What the acts of a read cost, in microseconds each; the chooser adds them up for every plan.

    The defaults were measured on two cores with a PostgreSQL 18 beside them: by least squares over
    some 1,000 reads of 100 to 1,000,000 points, and what the client does by timing that alone.
    """

    read: float = _price(100.0, "what any read takes in the client")
    statement: float = _price(450.0, "a round trip to the database")
    series: float = _price(25.0, "a series whose points a statement looks for")
    point: float = _price(0.19, "a point that is fetched")
    value: float = _price(0.016, "a column of a fetched point")
    scanned: float = _price(0.24, "a point that the database aggregates")
    aggregated: float = _price(0.025, "a state (sum, max, …) of an aggregated point")
    ordered: float = _price(
        0.11, "an aggregated point, where a first or last value has them sorted"
    )
    zoned: float = _price(0.058, "an aggregated point, where buckets are of a calendar")
    grouped: float = _price(0.15, "a state of a bucket that the database makes")
    follow: float = _price(170.0, "to ask a rollup and its change log")
    followed: float = _price(45.0, "a series whose changes are looked for")
    row: float = _price(0.23, "a rollup row that is fetched")
    state: float = _price(0.039, "a state of a rollup row")
    changed: float = _price(330.0, "to read points of changed or cut buckets, where there are any")
    bucket: float = _price(0.02, "a bucket of the answer")
    array: float = _price(12.0, "a state that the client makes, however few rows")
    bucketed: float = _price(0.003, "a state of a point that the client puts into its bucket")
    merged: float = _price(
        0.003, "a state of a rollup row that the client merges into a longer bucket"
    )
    cached: float = _price(0.005, "a row that is remembered")
    block: float = _price(30.0, "a block that is fetched")
    stored: float = _price(0.01, "a point of a block")
    decoded: float = _price(0.006, "a column of a point that is decoded")


@dataclass(frozen=True, slots=True)
class CacheOptions:
    """What a store remembers of its answers; ``memory`` in MiB (0: nothing), times in seconds.

    ``redis`` is the URL of a Redis or Valkey that shares it with other processes,
    ``redis_timeout`` how long that may be silent before it is left alone. ``max_age`` is how old
    an answer may be that others have changed meanwhile, ``keep_log`` how long the change log
    keeps what every rollup has followed: a cache that slept longer starts anew. ``ahead``: what
    will soon have to be asked anew is so in the background, as long as it is read. ``rules`` say
    what is kept of which dataset and step, and how long.
    """

    memory: int = 64
    redis: str = field(default="", repr=False)  # may hold a password
    redis_timeout: float = 0.05
    max_age: float = 1.0
    keep_log: float = 300.0
    ahead: bool = True
    rules: tuple[CacheRule, ...] = ()

    def check_shared(self) -> None:
        """Raise ConfigError where nothing is shared with other processes."""
        if not self.redis:
            raise ConfigError(
                "cache.redis",
                "",
                "is not set, so that nothing is shared; give the URL of a Redis or Valkey there "
                "or in TOOLKIT_CACHE_REDIS",
            )
        if not self.memory:
            raise ConfigError(
                "cache.memory", "", "is 0: a store that remembers nothing shares nothing"
            )


@dataclass(frozen=True, slots=True)
class DecodeOptions:
    """The threads that decode blocks: as many as there is work for, and none after a while.

    ``least`` stay; ``most`` 0 is one a core; ``idle`` seconds without work end the others.
    """

    least: int = 0
    most: int = 0
    idle: float = 30.0


@dataclass(frozen=True, slots=True)
class MaintenanceOptions:
    """How maintenance goes: ``lock_timeout`` (seconds) and ``tries`` of DDL that waits for locks,
    ``ahead``, how many partitions there shall be after the present one, ``keep_runs``, for how
    long runs are remembered, ``retain_export``, a folder that retention exports points to before
    it drops them (empty: none), and how often each job is due, as steps; empty: never by itself.
    """

    lock_timeout: float = 2.0
    tries: int = 5
    ahead: int = 3
    keep_runs: str = "90d"
    retain_export: str = ""
    partitions: str = "1h"
    retention: str = "1h"
    refresh: str = "1m"
    audit: str = ""
    compress: str = "1h"
    recompress: str = "1d"
    verify: str = "30d"
    vacuum: str = "10m"
    reindex: str = "1d"
    warm: str = "15m"
    cleanup: str = "1d"

    def every(self, job: str) -> timedelta | None:
        """Return how often a job is due; None: never by itself."""
        text = getattr(self, job)
        return timedelta(microseconds=Step.parse(text).approximate_us) if text else None


@dataclass(frozen=True, slots=True)
class AlertOptions:
    """From when on somebody is told; times in seconds, shares of 1.

    ``p95``: what 95 % of a service's reads take at most; ``slow``: what a statement on the server
    may; ``errors``: the share of calls that may fail; ``lag``: how far a replica may be behind;
    ``hit_rate``: the share of spans that a cache shall have; ``memory``: the share of its memory
    that a process, or Redis, may take; ``pool``: the share of connections that may be in use;
    ``silence``: how many times its interval a job may be without success; ``ahead``: partitions
    that there shall be after the present one.
    """

    p95: float = 0.5
    slow: float = 30.0
    errors: float = 0.01
    lag: float = 10.0
    hit_rate: float = 0.5
    memory: float = 0.8
    pool: float = 0.8
    silence: float = 3.0
    ahead: int = 1
