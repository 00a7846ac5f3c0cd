"""The list of panels, which becomes the dashboard of Grafana."""

from __future__ import annotations

from dataclasses import dataclass, field

_RATE = "[$__rate_interval]"
WIDTH, HEIGHT = 8, 7  # three in a row, as Grafana counts


@dataclass(frozen=True, slots=True)
class Panel:
    """One graph: expressions of PromQL, each with what its lines are called."""

    title: str
    lines: tuple[tuple[str, str], ...]
    unit: str = "short"
    about: str = ""


@dataclass(frozen=True, slots=True)
class Row:
    """Panels that belong together."""

    title: str
    panels: tuple[Panel, ...] = field(default_factory=tuple)


def _rate(metric: str, by: str) -> str:
    return f"sum by ({by}) (rate({metric}{_RATE}))"


def _one(title: str, expression: str, legend: str, unit: str = "short", about: str = "") -> Panel:
    return Panel(title, ((expression, legend),), unit, about)


def _rated(title: str, metric: str, by: str, unit: str = "ops") -> Panel:
    return _one(title, _rate(metric, by), f"{{{{{by}}}}}", unit)


def _quantile(share: float, by: str = "le") -> str:
    buckets = _rate("toolkit_read_duration_seconds_bucket", by)
    return f"histogram_quantile({share:g}, {buckets})"


def _share(part: str, rest: str, by: str) -> str:
    return f"{_rate(part, by)} / ({_rate(part, by)} + {_rate(rest, by)})"


def _lag(unit: str) -> str:
    return f"max by (node) (toolkit_node_lag_{unit} or toolkit_replica_lag_{unit})"


_SEEN = "As services see it; of a service without a topology, and of cron, as the server says."

DASHBOARD: tuple[Row, ...] = (
    Row(
        "Reads",
        (
            _rated("Reads by strategy", "toolkit_reads_total", "strategy", "reqps"),
            _rated("Reads by dataset", "toolkit_reads_total", "dataset", "reqps"),
            Panel(
                "How long reads take",
                tuple((_quantile(share), f"p{share * 100:g}") for share in (0.5, 0.95, 0.99)),
                "s",
            ),
            _one("p95 by source", _quantile(0.95, "le, source"), "{{source}}", "s"),
            _rated("Reads by source", "toolkit_read_duration_seconds_count", "source", "reqps"),
            _rated("Errors by class", "toolkit_errors_total", "error"),
            Panel(
                "Rows",
                (
                    (f"sum(rate(toolkit_rows_returned_total{_RATE}))", "returned"),
                    (f"sum(rate(toolkit_rows_touched_total{_RATE}))", "touched"),
                ),
                "rowsps",
                "Touched are rows the database read; many more than returned: see toolkit explain.",
            ),
            _rated("Bytes of answers", "toolkit_answer_bytes_total", "source", "Bps"),
            _rated("Other calls", "toolkit_calls_total", "call"),
        ),
    ),
    Row(
        "Writes, cache",
        (
            _rated("Rows written", "toolkit_rows_written_total", "outcome", "rowsps"),
            _one(
                "Hit rate",
                _share("toolkit_cache_hits_total", "toolkit_cache_misses_total", "tier"),
                "{{tier}}",
                "percentunit",
            ),
            Panel(
                "Memory of caches",
                (
                    ("sum(toolkit_cache_bytes)", "taken"),
                    ("sum(toolkit_cache_max_bytes)", "at most"),
                ),
                "bytes",
            ),
            Panel(
                "Spans",
                (
                    ("sum(toolkit_cache_spans)", "remembered"),
                    (f"sum(rate(toolkit_cache_evicted_total{_RATE}))", "evicted a second"),
                ),
            ),
            _rated("Bytes to and from Redis", "toolkit_redis_bytes_total", "direction", "Bps"),
            Panel(
                "Redis",
                (
                    ("max(toolkit_redis_memory_bytes)", "memory"),
                    ("max(toolkit_redis_max_memory_bytes)", "at most"),
                ),
                "bytes",
            ),
            _one(
                "Hit rate of Redis",
                f"max(rate(toolkit_redis_keyspace_hits_total{_RATE}) / "
                f"(rate(toolkit_redis_keyspace_hits_total{_RATE}) + "
                f"rate(toolkit_redis_keyspace_misses_total{_RATE})))",
                "all keys",
                "percentunit",
            ),
        ),
    ),
    Row(
        "Nodes",
        (
            _rated("Reads by node", "toolkit_node_reads_total", "node", "reqps"),
            _rated("Reads that moved on", "toolkit_node_reads_moved_total", "node"),
            _one("Lag", _lag("seconds"), "{{node}}", "s", _SEEN),
            _one("Lag in bytes", _lag("bytes"), "{{node}}", "bytes", _SEEN),
            Panel(
                "Up, or left alone",
                (
                    ("min by (node) (toolkit_node_up)", "{{node}} up"),
                    ("max by (node) (toolkit_breaker_open)", "{{node}} left alone"),
                ),
            ),
            _one("Latency", "max by (node) (toolkit_node_latency_seconds)", "{{node}}", "s"),
            _one("Calls under way", "sum by (node) (toolkit_node_inflight)", "{{node}}"),
        ),
    ),
    Row(
        "Pools and turns",
        (
            Panel(
                "Connections",
                (
                    ("sum by (node) (toolkit_pool_size)", "{{node}}"),
                    ("sum by (node) (toolkit_pool_idle)", "{{node}} idle"),
                    ("sum by (node) (toolkit_pool_max)", "{{node}} at most"),
                ),
            ),
            _one("Waiting for one", "sum by (node) (toolkit_pool_waiting)", "{{node}}"),
            Panel(
                "Admission",
                (
                    ("sum(toolkit_admission_inflight)", "under way"),
                    ("sum(toolkit_admission_waiting)", "waiting"),
                    (f"sum(rate(toolkit_admission_refused_total{_RATE}))", "refused a second"),
                ),
            ),
        ),
    ),
    Row(
        "Maintenance",
        (
            _one(
                "Since the last success",
                "time() - max by (job_name) (toolkit_job_last_success_timestamp_seconds > 0)",
                "{{job_name}}",
                "s",
            ),
            Panel(
                "How long runs take, and how often they are due",
                (
                    ("max by (job_name) (toolkit_job_duration_seconds)", "{{job_name}}"),
                    ("max by (job_name) (toolkit_job_interval_seconds)", "{{job_name}} every"),
                ),
                "s",
            ),
            _one("Failures since then", "max(toolkit_job_failures)", "of all jobs"),
            _one("Partitions", "max by (dataset) (toolkit_partitions)", "{{dataset}}"),
            _one("Partitions ahead", "min by (dataset) (toolkit_partitions_ahead)", "{{dataset}}"),
        ),
    ),
    Row(
        "Memory and server",
        (
            Panel(
                "Memory of processes",
                (
                    ("toolkit_process_resident_bytes", "{{instance}}"),
                    ("toolkit_process_limit_bytes", "{{instance}} at most"),
                ),
                "bytes",
            ),
            Panel(
                "Growth in an hour",
                (
                    ("toolkit_memory_trend_bytes_per_hour", "{{instance}} {{of}}"),
                    ("deriv(toolkit_process_resident_bytes[1h]) * 3600", "{{instance}}, graphed"),
                ),
                "bytes",
            ),
            Panel(
                "Connections of the server",
                (
                    ("max(toolkit_server_connections)", "in use"),
                    ("max(toolkit_server_max_connections)", "at most"),
                ),
            ),
            _one("Oldest statement", "max(toolkit_server_longest_statement_seconds)", "runs", "s"),
            _one(
                "Pages found in buffers",
                f"max(rate(toolkit_server_buffer_hits_total{_RATE}) / "
                f"(rate(toolkit_server_buffer_hits_total{_RATE}) + "
                f"rate(toolkit_server_buffer_reads_total{_RATE})))",
                "share",
                "percentunit",
            ),
            Panel(
                "Told, and by what version",
                (
                    ("min(toolkit_server_up)", "the server told all"),
                    ("count by (version) (toolkit_build_info)", "{{version}}"),
                ),
            ),
        ),
    ),
)
