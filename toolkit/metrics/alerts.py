"""The list of alerts: when somebody is told, for Prometheus and for `toolkit check --alerts`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from toolkit.errors import counted
from toolkit.metrics.server import Figures
from toolkit.options import AlertOptions

OK, FIRING, UNKNOWN = "ok", "firing", "unknown"
CALLERS = ("ConfigError", "ExportError", "InputError", "MissingExtra", "QueryError", "UnknownName")
"""Errors that are the caller's own."""

_LEAST_S = 300  # a job that is due every minute is silent when cron is, not when one turn is late
_INSIDE = "only services know; see toolkit.metrics.register"


@dataclass(frozen=True, slots=True)
class Verdict:
    """What an alert comes to: ok, firing or unknown, and why."""

    status: str
    said: str


Judge = Callable[[Figures, AlertOptions], Verdict]


@dataclass(frozen=True, slots=True)
class Alert:
    """One alert: it fires where ``value``, an expression of PromQL, is beyond its threshold.

    ``threshold`` is a setting of ``[alerts]``, or a number that nobody has to choose. With
    ``is_least`` what is below it fires, else what is above. ``judge`` does without Prometheus.
    """

    name: str
    value: str
    threshold: str | float
    severity: str
    lasting: str
    summary: str
    description: str
    judge: Judge
    is_least: bool = False

    @property
    def id(self) -> str:
        """What people call it.

        >>> ALERTS[0].name, ALERTS[0].id
        ('ToolkitSlowReads', 'slow-reads')
        """
        words = "".join(f"-{c.lower()}" if c.isupper() else c for c in self.name)
        return words.removeprefix("-toolkit-")

    def limit(self, options: AlertOptions) -> float:
        """Return the threshold as a number."""
        key = self.threshold
        return float(getattr(options, key)) if isinstance(key, str) else key

    def expression(self, options: AlertOptions) -> str:
        """Return what Prometheus evaluates."""
        return f"{self.value} {'<' if self.is_least else '>'} {self.limit(options):g}"


def judged(figures: Figures, options: AlertOptions) -> Iterator[tuple[Alert, Verdict]]:
    """Yield every alert and what it comes to by what the server said."""
    for alert in ALERTS:
        yield alert, alert.judge(figures, options)


def _inside(what: str) -> Judge:
    return lambda figures, options: Verdict(UNKNOWN, f"{what}: {_INSIDE}")


def _verdict(is_firing: bool, said: str) -> Verdict:
    return Verdict(FIRING if is_firing else OK, said)


def _untold(figures: Figures, part: str) -> Verdict:
    return Verdict(UNKNOWN, figures.unknown.get(part, f"nothing is known of {part}"))


def _slow_queries(figures: Figures, options: AlertOptions) -> Verdict:
    database = figures.database
    longest = database.longest or 0.0
    if longest <= options.slow and database.hidden:
        return Verdict(
            UNKNOWN,
            f"{counted(database.hidden, 'sessions')} of other roles may not be looked at; "
            "GRANT pg_read_all_stats to this one",
        )
    said = f"the oldest statement runs for {longest:.0f} s" if longest else "no statement runs"
    return _verdict(longest > options.slow, said)


def _lag(figures: Figures, options: AlertOptions) -> Verdict:
    replicas = figures.replicas
    if replicas is None:
        return _untold(figures, "replicas")
    if not replicas:
        return Verdict(OK, "there are no replicas")
    known = {n: r.seconds for n, r in replicas.items() if r.seconds is not None and not r.why}
    late = [f"{n} by {s:.1f} s" for n, s in known.items() if s > options.lag]
    if late:
        return Verdict(FIRING, f"behind: {', '.join(late)}")
    dark = [n for n in replicas if n not in known]
    if dark:
        return Verdict(UNKNOWN, f"nothing tells how far {', '.join(dark)} is behind")
    return Verdict(OK, f"no replica is more than {max(known.values()):.1f} s behind")


def _nodes(figures: Figures, options: AlertOptions) -> Verdict:
    if figures.replicas is None:
        return _untold(figures, "replicas")
    down = [r.why for r in figures.replicas.values() if r.why]
    return _verdict(bool(down), "; ".join(down) or "no replica is known to be down")


def _redis_memory(figures: Figures, options: AlertOptions) -> Verdict:
    redis = figures.redis
    if redis is None:
        is_told = "redis" in figures.unknown
        return _untold(figures, "redis") if is_told else Verdict(OK, "there is no Redis")
    if not redis.most:
        return Verdict(UNKNOWN, "maxmemory is 0: nothing says what Redis may take")
    share = redis.memory / redis.most
    return _verdict(share > options.memory, f"Redis takes {share:.0%} of its memory")


def _connections(figures: Figures, options: AlertOptions) -> Verdict:
    database = figures.database
    share = database.connections / max(1, database.most)
    said = f"{database.connections} of {database.most} connections are in use"
    return _verdict(share > options.pool, said)


def _hit_rate(figures: Figures, options: AlertOptions) -> Verdict:
    redis = figures.redis
    if redis is None:
        if "redis" in figures.unknown:
            return _untold(figures, "redis")
        return Verdict(UNKNOWN, f"what is found in memory: {_INSIDE}")
    asked = redis.hits + redis.misses
    if asked < 1_000:
        return Verdict(UNKNOWN, f"Redis was asked {asked:.0f} times only since it started")
    share = redis.hits / asked
    said = f"{share:.0%} of what anybody asked of Redis since it started was there"
    return _verdict(share < options.hit_rate, said)


def _silence(figures: Figures, options: AlertOptions) -> Verdict:
    if figures.jobs is None:
        return _untold(figures, "jobs")
    silent = [
        f"{n} "
        + (f"for {j.silent:.0f} s" if j.success_at else "ever")
        + f" (due every {j.every:.0f} s{f'; the last run: {j.last}' if j.last else ''})"
        for n, j in figures.jobs.items()
        if j.silent > options.silence * max(j.every, _LEAST_S)
    ]
    said = f"no success: {', '.join(silent)}" if silent else "every job had success in time"
    return _verdict(bool(silent), said)


def _missing(figures: Figures, options: AlertOptions) -> Verdict:
    if figures.partitions is None:
        return _untold(figures, "partitions")
    few = [f"{n} has {k}" for n, (_, k) in figures.partitions.items() if k < options.ahead]
    said = f"partitions ahead: {', '.join(few)}" if few else "every dataset has partitions ahead"
    return _verdict(bool(few), said)


def _untold_parts(figures: Figures, options: AlertOptions) -> Verdict:
    said = "; ".join(f"{part}: {why}" for part, why in figures.unknown.items())
    return _verdict(bool(said), said or "the server told all that was asked")


_CALLERS = "|".join(CALLERS)
_TOOK = "rate(toolkit_read_duration_seconds_count[5m])"
_FAILED = f'sum(rate(toolkit_errors_total{{error!~"{_CALLERS}"}}[5m]))'

ALERTS: tuple[Alert, ...] = (
    Alert(
        "ToolkitSlowReads",
        "histogram_quantile(0.95, sum by (le) (rate(toolkit_read_duration_seconds_bucket[5m])))",
        "p95",
        "warning",
        "10m",
        "One read in twenty takes {{ $value | humanizeDuration }} or more.",
        "Look which source is slow (dashboard, reads by source) and what [log] slow says of single "
        "reads. From the database: toolkit explain shows the plan; toolkit refresh and toolkit "
        "vacuum bring rollups and index-only scans back.",
        _inside("how long reads take"),
    ),
    Alert(
        "ToolkitSlowQueries",
        "max(toolkit_server_longest_statement_seconds)",
        "slow",
        "warning",
        "2m",
        "A statement runs for {{ $value | humanizeDuration }}.",
        "SELECT pid, usename, state, query FROM pg_stat_activity ORDER BY query_start shows it; "
        "SELECT pg_cancel_backend(pid) ends it. It may hold back vacuum and whoever waits for its "
        "locks; [pool] statement_timeout bounds our own.",
        _slow_queries,
    ),
    Alert(
        "ToolkitErrors",
        f"{_FAILED} / (sum({_TOOK}) + sum(rate(toolkit_calls_total[5m])) + {_FAILED})",
        "errors",
        "critical",
        "5m",
        "{{ $value | humanizePercentage }} of calls fail.",
        "toolkit_errors_total says of which class: Unavailable and NoPrimary: toolkit topology "
        "check; QueryTimeout: see slow reads; Overloaded: [admission] or more processes; "
        "DatabaseError: the service's log has the sentence. Callers' own mistakes do not count.",
        _inside("how many calls fail"),
    ),
    Alert(
        "ToolkitReplicaLag",
        "max by (node) (toolkit_node_lag_seconds or toolkit_replica_lag_seconds)",
        "lag",
        "warning",
        "5m",
        "The replica {{ $labels.node }} is {{ $value | humanizeDuration }} behind.",
        "Reads that need fresher answers go elsewhere meanwhile. toolkit topology check says "
        "whether its replay is paused, or it receives nothing; a long read on it may hold the "
        "replay up (max_standby_streaming_delay).",
        _lag,
    ),
    Alert(
        "ToolkitNodeDown",
        "min by (node) (toolkit_node_up)",
        1.0,
        "critical",
        "1m",
        "The node {{ $labels.node }} does not answer.",
        "Reads and writes go on without it where they can. toolkit topology check says what "
        "is known of it; if it was the primary and no replica was promoted, nothing is written.",
        _nodes,
        is_least=True,
    ),
    Alert(
        "ToolkitCacheHitRate",
        "sum by (tier) (rate(toolkit_cache_hits_total[15m])) / (sum by (tier) "
        "(rate(toolkit_cache_hits_total[15m])) + sum by (tier) "
        "(rate(toolkit_cache_misses_total[15m])))",
        "hit_rate",
        "info",
        "30m",
        "{{ $value | humanizePercentage }} of spans are found in {{ $labels.tier }}.",
        "If spans are evicted as fast as they come, raise [cache] memory, or maxmemory of Redis. "
        "The job warm fills it with what is asked often; [cache] rules keep the rest out.",
        _hit_rate,
        is_least=True,
    ),
    Alert(
        "ToolkitMemory",
        "max by (instance) (toolkit_process_resident_bytes / toolkit_process_limit_bytes)",
        "memory",
        "critical",
        "5m",
        "The process {{ $labels.instance }} takes {{ $value | humanizePercentage }} of its memory.",
        "toolkit_memory_trend_bytes_per_hour says whether it grows. Lower [cache] memory or "
        "[admission] max_inflight, read large ranges by store.stream, or give it more.",
        _inside("what memory services take"),
    ),
    Alert(
        "ToolkitRedisMemory",
        "max(toolkit_redis_memory_bytes / toolkit_redis_max_memory_bytes)",
        "memory",
        "info",
        "15m",
        "Redis takes {{ $value | humanizePercentage }} of its memory.",
        "With maxmemory-policy allkeys-lru that is what a cache is for, as long as the hit rate is "
        "good; with noeviction it will take nothing new: CONFIG SET maxmemory-policy allkeys-lru.",
        _redis_memory,
    ),
    Alert(
        "ToolkitPoolPressure",
        "max by (instance, node) ((toolkit_pool_size - toolkit_pool_idle) / toolkit_pool_max)",
        "pool",
        "warning",
        "5m",
        "{{ $value | humanizePercentage }} of the connections to {{ $labels.node }} are in use.",
        "Soon calls wait for one (toolkit_pool_waiting). If the server has room, raise [pool] "
        "max_size or run more processes; if not, [admission] max_inflight has callers take turns.",
        _inside("how full the pools of services are"),
    ),
    Alert(
        "ToolkitConnections",
        "max(toolkit_server_connections / toolkit_server_max_connections)",
        "pool",
        "warning",
        "5m",
        "{{ $value | humanizePercentage }} of the server's connections are in use.",
        "SELECT usename, application_name, count(*) FROM pg_stat_activity GROUP BY 1, 2 shows "
        "whose. Lower [pool] max_size of services, or put PgBouncer before the server: toolkit "
        "pgbouncer render.",
        _connections,
    ),
    Alert(
        "ToolkitJobSilence",
        "(time() - max by (job_name) (toolkit_job_last_success_timestamp_seconds)) / "
        f"clamp_min(max by (job_name) (toolkit_job_interval_seconds), {_LEAST_S})",
        "silence",
        "warning",
        "10m",
        "The job {{ $labels.job_name }} had no success for {{ $value | humanize }} times its "
        "interval.",
        "Does cron run toolkit maintain (--print-cron writes the line)? If so, toolkit jobs says "
        "how the last runs ended, and toolkit check --grants which right is missing.",
        _silence,
    ),
    Alert(
        "ToolkitPartitionsMissing",
        "min by (dataset) (toolkit_partitions_ahead)",
        "ahead",
        "warning",
        "15m",
        "The dataset {{ $labels.dataset }} has {{ $value }} partitions after the present one.",
        "toolkit maintain makes them ahead of time; until then writers have to, and wait for "
        "its lock. toolkit datasets partitions shows which there are.",
        _missing,
        is_least=True,
    ),
    Alert(
        "ToolkitUnknown",
        "min(toolkit_server_up)",
        1.0,
        "info",
        "15m",
        "The server does not tell all that is asked of it.",
        "What cannot be judged is not well: the other alerts may be silent for that reason. "
        "toolkit metrics says what is missing, toolkit check --grants which right.",
        _untold_parts,
        is_least=True,
    ),
)
