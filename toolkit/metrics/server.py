"""What anybody may ask the server, and Redis: figures that need no service's process."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, TypeVar

from toolkit.config import Settings
from toolkit.drivers import Params, Rows, drive
from toolkit.errors import ToolkitError
from toolkit.metrics.table import OTHER, Datasets, Values
from toolkit.statements import compose, name
from toolkit.store import Store
from toolkit_maintenance.records import JobState, read_states
from toolkit_maintenance.registry import JOBS

if TYPE_CHECKING:
    from toolkit.nodes import NodeReport

T = TypeVar("T")
_REDIS_S = 2.0
_STATEMENT_S = 5.0


@dataclass(frozen=True, slots=True)
class Database:
    """The server's own figures; ``hidden`` sessions are of roles that ours may not look at."""

    connections: int
    most: int
    longest: float | None
    hidden: int
    hits: float
    reads: float


@dataclass(frozen=True, slots=True)
class Replica:
    """How far a replica is behind; None: not known. ``why`` says what is wrong with it."""

    bytes: float | None
    seconds: float | None
    why: str = ""


@dataclass(frozen=True, slots=True)
class Job:
    """How a job's runs went, in seconds; ``every`` is how often it is due, ``last`` its last end.

    A success is a run that did what there was to do, or looked and found nothing; not one that
    could not do or judge something.
    """

    every: float
    success_at: float
    silent: float
    seconds: float | None
    failures: int
    last: str = ""


@dataclass(frozen=True, slots=True)
class Redis:
    """The server's figures, of all that it holds for anybody; ``most`` 0 is without a limit."""

    memory: float
    most: float
    hits: float
    misses: float


@dataclass(frozen=True, slots=True)
class Figures:
    """What was told; ``unknown`` says of the parts that were not why."""

    database: Database
    replicas: Mapping[str, Replica] | None = None
    jobs: Mapping[str, Job] | None = None
    partitions: Mapping[str, tuple[int, int]] | None = None
    redis: Redis | None = None
    unknown: Mapping[str, str] = field(default_factory=dict)


def look(settings: Settings) -> Figures:
    """Ask the server for its figures; takes some ms, and seconds at most where it hangs.

    Opens a store of its own, with two connections at most, and closes it. Raises Unavailable.
    """
    pool = replace(
        settings.pool,
        min_size=0,
        max_size=2,
        pool_timeout=_STATEMENT_S,
        statement_timeout=_STATEMENT_S,
        application_name="toolkit metrics",
    )
    unknown: dict[str, str] = {}

    def part(what: str, ask: Callable[[], T]) -> T | None:
        try:
            return ask()
        except ToolkitError as error:
            unknown[what] = str(error)
            return None

    store = Store(replace(settings.without_cache(), pool=pool))
    asks = _Asks(store)
    try:
        database = _database(asks)  # where that cannot be asked nothing can
        jobs = part("jobs", lambda: _jobs(asks, settings))
        partitions = part("partitions", lambda: _partitions(asks, settings.schema))
        replicas = part("replicas", lambda: _replicas(store, asks))
    finally:
        store.close()
    redis = part("redis", lambda: _redis(settings)) if settings.cache.redis else None
    return Figures(database, replicas, jobs, partitions, redis, unknown)


@dataclass(frozen=True, slots=True)
class _Asks:
    """The primary of a store, for plain statements."""

    store: Store

    def fetch(self, statement: bytes, params: Params | None = None) -> Rows:
        return drive(self.store._roads.driver.fetch(statement, params))


def _database(asks: _Asks) -> Database:
    return Database(*asks.fetch(compose("metrics/look_at_database"))[0])


def _partitions(asks: _Asks, schema: str) -> dict[str, tuple[int, int]]:
    statement = compose("metrics/count_partitions", dataset=name(schema, "dataset"))
    return {d: (count, ahead) for d, count, ahead in asks.fetch(statement, {"schema": schema})}


def _jobs(asks: _Asks, settings: Settings) -> dict[str, Job]:
    states, now = read_states(asks, settings.schema, JOBS.values())
    found = {}
    for job, state in states.items():
        every = settings.maintenance.every(job)
        if every is not None:
            found[job] = _job(state, every.total_seconds(), now.timestamp())
    return found


def _job(state: JobState, every: float, now: float) -> Job:
    at = state.success_at.timestamp() if state.success_at is not None else 0.0
    silent = now - at if at else math.inf
    last = ": ".join([state.status, *state.said[:1]]) if state.status else ""
    return Job(every, at, silent, state.seconds, state.failures, last)


def _replicas(store: Store, asks: _Asks) -> dict[str, Replica]:
    cluster = store._roads.cluster
    if cluster is not None:
        from toolkit.nodes import describe_nodes

        reports = drive(describe_nodes(cluster, store.settings.schema))
        return {r.name: _of_report(r) for r in reports if r.role != "primary"}
    rows = asks.fetch(compose("metrics/list_replicas"))
    return {n: Replica(size, seconds) for n, size, seconds in rows}


def _of_report(report: NodeReport) -> Replica:
    why = "" if report.is_up else f"{report.name} is down"
    return Replica(report.lag.bytes, report.lag.seconds, why)


def _redis(settings: Settings) -> Redis:
    from redis import Redis as Client
    from redis.backoff import NoBackoff
    from redis.exceptions import RedisError
    from redis.retry import Retry

    from toolkit.errors import Unavailable

    options = {"socket_timeout": _REDIS_S, "socket_connect_timeout": _REDIS_S}
    try:
        with Client.from_url(settings.cache.redis, retry=Retry(NoBackoff(), 0), **options) as redis:
            said = redis.info("memory") | redis.info("stats")
    except (RedisError, OSError) as error:
        raise Unavailable(f"redis: {error}") from error
    return Redis(
        float(said.get("used_memory", 0)),
        float(said.get("maxmemory", 0)),
        float(said.get("keyspace_hits", 0)),
        float(said.get("keyspace_misses", 0)),
    )


def values(figures: Figures | None, datasets: Datasets) -> Values:
    """Return figures as metrics; None: the server told nothing."""
    if figures is None:
        return {"server_up": {(): 0.0}}
    found: Values = {"server_up": {(): float(not figures.unknown)}}
    database = figures.database
    found |= {
        "server_connections": {(): database.connections},
        "server_max_connections": {(): database.most},
        "server_longest_statement_seconds": {(): database.longest or 0.0},
        "server_buffer_hits": {(): database.hits},
        "server_buffer_reads": {(): database.reads},
    }
    replicas = figures.replicas or {}
    found["replica_lag_seconds"] = {
        (n,): r.seconds for n, r in replicas.items() if r.seconds is not None
    }
    found["replica_lag_bytes"] = {(n,): r.bytes for n, r in replicas.items() if r.bytes is not None}
    found |= _of_partitions(figures.partitions or {}, datasets)
    jobs = figures.jobs or {}
    found["job_last_success_timestamp_seconds"] = {(n,): j.success_at for n, j in jobs.items()}
    found["job_duration_seconds"] = {
        (n,): j.seconds for n, j in jobs.items() if j.seconds is not None
    }
    if figures.jobs is not None:
        found["job_failures"] = {(): sum(j.failures for j in jobs.values())}
    found["job_interval_seconds"] = {(n,): j.every for n, j in jobs.items()}
    if (redis := figures.redis) is not None:
        found |= {
            "redis_memory_bytes": {(): redis.memory},
            "redis_max_memory_bytes": {(): redis.most} if redis.most else {},
            "redis_keyspace_hits": {(): redis.hits},
            "redis_keyspace_misses": {(): redis.misses},
        }
    return found


def _of_partitions(partitions: Mapping[str, tuple[int, int]], datasets: Datasets) -> Values:
    """Return how many there are and how many lie ahead: of all others, the fewest."""
    many: dict[tuple[str, ...], float] = {}
    ahead: dict[tuple[str, ...], float] = {}
    for dataset, (count, left) in partitions.items():
        of = (datasets.label(dataset),)
        many[of] = many.get(of, 0) + count
        ahead[of] = min(ahead.get(of, math.inf), left) if of == (OTHER,) else left
    return {"partitions": many, "partitions_ahead": ahead}  # type: ignore[dict-item]  # numbers
