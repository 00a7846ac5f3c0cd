"""The list of metrics: what each is called, what it says, and which counter it is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial

COUNTER, GAUGE, HISTOGRAM = "counter", "gauge", "histogram"
PROCESS, SERVER = "process", "server"
OTHER = "other"
DATASETS = 6
"""So many datasets have labels of their own, in the order in which they come; the rest is other."""

BOUNDS_S = (0.0001, 0.001, 0.005, 0.025, 0.1, 0.5, 2.0, 10.0)
"""The buckets of a time, few: each is a series for each source. A bound is right to 5 %."""


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric; ``name`` is without the ``toolkit_`` and ``_total`` that Prometheus sees.

    ``of``: what a service's process counts itself, or what anybody may ask the server. ``stats``
    are the counters of ``store.stats()`` that it shows, by the value of its label (empty: it has
    none); those of an ``is_by_node`` metric have the node's name behind a dot. A metric without
    any is worked out.
    """

    name: str
    help: str
    kind: str = GAUGE
    of: str = PROCESS
    labels: tuple[str, ...] = ()
    unit: str = ""
    stats: Mapping[str, str] = field(default_factory=dict)
    scale: float = 1.0
    is_by_node: bool = False

    @property
    def full_name(self) -> str:
        """What Prometheus calls it in expressions.

        >>> Metric("reads", "", COUNTER).full_name, Metric("node_up", "").full_name
        ('toolkit_reads_total', 'toolkit_node_up')
        """
        return f"toolkit_{self.name}" + ("_total" if self.kind == COUNTER else "")


_gauge = Metric
_counter = partial(Metric, kind=COUNTER)
_node = partial(Metric, labels=("node",), is_by_node=True)
_server = partial(Metric, of=SERVER)

METRICS: tuple[Metric, ...] = (
    _gauge("build_info", "The version of the toolkit; always 1.", labels=("version",)),
    # -- calls
    _counter("reads", "Reads that were answered.", labels=("dataset", "strategy")),
    Metric(
        "read_duration_seconds",
        "How long reads took, by their slowest source.",
        HISTOGRAM,
        labels=("source",),
        unit="seconds",
    ),
    _counter("rows_returned", "Rows that reads returned."),
    _counter("rows_touched", "Rows that the database read for them."),
    _counter(
        "answer_bytes",
        "Bytes of answers that were not in this process's memory.",
        labels=("source",),
        unit="bytes",
    ),
    _counter(
        "calls",
        "Calls that were not reads.",
        labels=("call",),
        stats={
            "latest": "latest",
            "stream": "streams",
            "write": "writes",
            "delete": "deletes",
            "backfill": "backfills",
            "refresh": "refreshes",
            "upkeep": "upkeep",
        },
    ),
    _counter(
        "rows_written",
        "Rows that writes and deletes were about.",
        labels=("outcome",),
        stats={
            "inserted": "rows_inserted",
            "updated": "rows_updated",
            "unchanged": "rows_unchanged",
            "deleted": "rows_deleted",
        },
    ),
    _counter("errors", "Calls that failed, by the class of the error.", labels=("error",)),
    # -- cache
    _counter(
        "cache_hits",
        "Spans that were found in a tier.",
        labels=("tier",),
        stats={"memory": "cache_hits", "redis": "redis_hits"},
    ),
    _counter(
        "cache_misses",
        "Spans that were not.",
        labels=("tier",),
        stats={"memory": "cache_misses", "redis": "redis_misses"},
    ),
    _counter("cache_evicted", "Spans that made room for others.", stats={"": "cache_evicted"}),
    _gauge("cache_spans", "Spans that are remembered.", stats={"": "cache_spans"}),
    _gauge("cache_bytes", "Bytes that they take.", unit="bytes", stats={"": "cache_bytes"}),
    _gauge("cache_max_bytes", "Bytes that they may take.", unit="bytes"),
    _counter(
        "redis_bytes",
        "Bytes from Redis, and to it.",
        unit="bytes",
        labels=("direction",),
        stats={"read": "redis_bytes_in", "written": "redis_bytes_out"},
    ),
    # -- nodes
    _node("node_up", "1 if a node answers.", stats={"": "node_is_up"}),
    _node("node_reads", "Reads that a node answered.", stats={"": "node_reads"}, kind=COUNTER),
    _node(
        "node_reads_moved",
        "Reads that left a node, which failed.",
        stats={"": "node_reads_moved"},
        kind=COUNTER,
    ),
    _node("node_inflight", "Calls on their way to a node.", stats={"": "node_inflight"}),
    _node(
        "node_latency_seconds",
        "How long a node takes to answer, lately.",
        stats={"": "node_latency_ms"},
        unit="seconds",
        scale=0.001,
    ),
    _node(
        "node_lag_seconds", "How far a replica is behind.", stats={"": "node_lag_s"}, unit="seconds"
    ),
    _node(
        "node_lag_bytes", "The same in bytes of log.", stats={"": "node_lag_bytes"}, unit="bytes"
    ),
    _gauge("breaker_open", "1 if a node, or redis, is left alone for a while.", labels=("node",)),
    # -- pools and turns
    _node("pool_size", "Connections of a pool.", stats={"": "pool_size"}),
    _node("pool_max", "Connections it may have.", stats={"": "pool_max"}),
    _node("pool_idle", "Connections nobody uses.", stats={"": "pool_available"}),
    _node("pool_waiting", "Calls that wait for one.", stats={"": "requests_waiting"}),
    _gauge("admission_inflight", "Reads under way.", stats={"": "admission_inflight"}),
    _gauge("admission_waiting", "Reads that wait for a turn.", stats={"": "admission_waiting"}),
    _counter("admission_refused", "Reads that got no turn.", stats={"": "admission_refused"}),
    # -- memory
    _gauge("process_resident_bytes", "Memory that this process takes.", unit="bytes"),
    _gauge("process_limit_bytes", "Memory that it may take, or the machine has.", unit="bytes"),
    _gauge(
        "memory_trend_bytes_per_hour",
        "Growth in an hour; NaN in the first five minutes.",
        labels=("of",),
        unit="bytes",
    ),
    # -- what the server says
    _server("server_up", "1 if the server told all that is asked of it."),
    _server("server_connections", "Connections to the server."),
    _server("server_max_connections", "Connections it takes of ordinary roles."),
    _server(
        "server_longest_statement_seconds",
        "How long the oldest statement runs that the role may see.",
        unit="seconds",
    ),
    _server("server_buffer_hits", "Pages the server had in its buffers.", kind=COUNTER),
    _server("server_buffer_reads", "Pages it had not.", kind=COUNTER),
    _server(
        "replica_lag_seconds", "How far a replica is behind.", unit="seconds", labels=("node",)
    ),
    _server("replica_lag_bytes", "The same in bytes of log.", unit="bytes", labels=("node",)),
    _server("partitions", "Partitions of a dataset.", labels=("dataset",)),
    _server(
        "partitions_ahead",
        "Partitions after the present one; 0 if that is missing.",
        labels=("dataset",),
    ),
    _server(
        "job_last_success_timestamp_seconds",
        "Beginning of the last success; 0: none.",
        unit="seconds",
        labels=("job_name",),
    ),
    _server(
        "job_duration_seconds",
        "What runs with work take (median).",
        unit="seconds",
        labels=("job_name",),
    ),
    _server("job_failures", "Runs of any job that failed since its last success."),
    _server(
        "job_interval_seconds", "How often a job is due.", unit="seconds", labels=("job_name",)
    ),
    _server("redis_memory_bytes", "Memory that Redis takes.", unit="bytes"),
    _server("redis_max_memory_bytes", "What it may take, if that is limited.", unit="bytes"),
    _server("redis_keyspace_hits", "Keys that anybody found in Redis.", kind=COUNTER),
    _server("redis_keyspace_misses", "Keys that nobody did.", kind=COUNTER),
)

BY_NAME = {m.name: m for m in METRICS}


@dataclass(frozen=True, slots=True)
class Histogram:
    """How many were no more than each of the bounds, in all, and their sum."""

    below: tuple[int, ...]
    count: int
    sum: float


Values = dict[str, dict[tuple[str, ...], "float | Histogram"]]
"""What metrics are, by name, and by the values of their labels."""


def as_mapping(values: Values) -> dict[str, object]:
    """Return metrics as JSON has them, by their full names; those of the server, no histograms.

    >>> as_mapping({"server_up": {(): 1.0}})["toolkit_server_up"]
    {'kind': 'gauge', 'unit': '', 'help': '1 if the server told all that is asked of it.',
     'samples': [{'labels': {}, 'value': 1.0}]}
    """
    found: dict[str, object] = {}
    for name, samples in values.items():
        metric = BY_NAME[name]
        found[metric.full_name] = {
            "kind": metric.kind,
            "unit": metric.unit,
            "help": metric.help,
            "samples": [
                {"labels": dict(zip(metric.labels, labels, strict=True)), "value": value}
                for labels, value in samples.items()
            ],
        }
    return found


class Datasets:
    """Which datasets have a label of their own: the first that come, for good."""

    def __init__(self, most: int = DATASETS) -> None:
        self._most = most
        self._named: set[str] = set()

    def label(self, dataset: str) -> str:
        """Return the label of a dataset.

        >>> two = Datasets(2)
        >>> [two.label(name) for name in ("a", "b", "c", "a")]
        ['a', 'b', 'other', 'a']
        """
        if dataset in self._named:
            return dataset
        if len(self._named) >= self._most:
            return OTHER
        self._named.add(dataset)
        return dataset
