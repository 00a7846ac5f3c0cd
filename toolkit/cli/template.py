"""The text of a new ``toolkit.toml``: every setting with its default, commented out."""

from __future__ import annotations

import json
from dataclasses import fields

from toolkit.config import Settings
from toolkit.options import (
    AlertOptions,
    CacheOptions,
    DecodeOptions,
    Limits,
    MaintenanceOptions,
    PoolOptions,
    Prices,
)
from toolkit.timegrid import EARLIEST, LATEST, iso
from toolkit.topologies import RoutingOptions
from toolkit_routing import AdmissionOptions

_HEAD = """\
# Settings of the toolkit. Flags win over environment variables (TOOLKIT_POOL_MAX_SIZE for
# max_size in [pool]), those over this file, and this file over the defaults, which are shown.
# `toolkit config show` says where each one comes from.
"""
_SECTIONS = {
    "database": "where the data is",
    "pool": "how connections are kept; times in seconds",
    "pgbouncer": "",
    "log": "",
    "read": "",
    "write": "",
    "chooser": "how a read is answered; points and buckets of a series",
    "prices": "what the acts of a read cost, in microseconds: toolkit calibrate measures them",
    "cache": "what a store remembers of its answers; times in seconds",
    "decode": "the threads that decode blocks",
    "admission": "how many reads may be under way, and how long each waits for its turn",
    "maintenance": "toolkit maintain: how often each job is due (empty: never), and how it goes",
    "alerts": "when toolkit check --alerts tells; times in seconds, shares of 1",
    "routing": "how nodes are looked at and chosen, where there are [[shards]]; times in seconds",
}
_SHARDS = """\
# Several servers take the place of dsn in [database]: one of them takes the writes, the others
# replicate it. direct is the way past a pooler that dsn leads through.
# [[shards]]
# name = "main"
# primary = { name = "db1", dsn = "host=db1 user=me dbname=market", region = "a" }
# replicas = [
#     { name = "db2", dsn = "host=db2 user=me dbname=market", region = "a", weight = 1.0 },
#     { name = "db3", dsn = "host=pool user=me dbname=db3", direct = "host=db3 dbname=market" },
# ]
"""
NOTES = {
    "database.dsn": "postgresql://user:password@host:5432/name, or key=value words.\n"
    "Without one the local servers are used. TOOLKIT_DSN keeps it out of files.",
    "database.schema": "the schema all tables are in",
    "database.allow_newer_schema": "work with a schema that a newer version migrated, "
    "while a deployment is under way",
    "pool.min_size": "connections that are kept open",
    "pool.max_size": "connections at most; a large read uses two",
    "pool.connect_timeout": "for a connection to be made",
    "pool.pool_timeout": "for one to become free",
    "pool.statement_timeout": "after which the server cancels a statement",
    "pool.max_idle": "after which one that is not needed is closed",
    "pool.application_name": "what the server lists us as",
    "pgbouncer.console": "where migrations, and toolkit pgbouncer, find its console:\n"
    "host=… port=6432 user=… dbname=pgbouncer",
    "log.slow": "seconds after which a read, a write or a delete is logged as slow, by the logger\n"
    "toolkit.slow, with how it was answered and where; 0 logs none",
    "read.parallel": "statements a large read runs at a time",
    "write.earliest": "points before this are refused",
    "write.latest": "points from this on are refused",
    "chooser.by": "price, or thresholds: direct and aggregated for every step",
    "chooser.direct": 'step="auto": up to so many points are read as they are',
    "chooser.aggregated": 'step="auto": up to so many are aggregated in the database',
    "chooser.buckets": "bars of an answer at most",
    "chooser.chart_points": "points that points=N reads before it turns to rollups",
    **{f"prices.{f.name}": f.metadata["what"] for f in fields(Prices)},
    "cache.memory": "MiB at most in this process; 0 remembers nothing",
    "cache.redis": "redis://user:password@host:6379/0 of a Redis or Valkey, 7.0 or newer, that\n"
    "shares what is remembered with other processes. Without one, each for itself.",
    "cache.redis_timeout": "for which it may be silent before it is left alone for a while",
    "cache.max_age": "how old an answer may be that others have changed meanwhile",
    "cache.keep_log": "for which the change log keeps what every rollup has followed",
    "cache.ahead": "what is soon due is fetched in the background, as long as it is read",
    "decode.least": "that stay",
    "decode.most": "at most; 0 is one a core",
    "decode.idle": "seconds without work after which one ends",
    "admission.max_inflight": "at once in this process; 0 is any number",
    "admission.rate": "a second for each caller; 0 is any number",
    "admission.burst": "of a caller at once, after a pause",
    "admission.urgent": "seconds that an urgent read waits for its turn",
    "admission.normal": "a normal one",
    "admission.batch": "one of a batch",
    "maintenance.lock_timeout": "seconds that DDL waits for a lock before it gives way to others",
    "maintenance.tries": "of DDL, with pauses between them",
    "maintenance.ahead": "partitions that there shall be after the present one",
    "maintenance.keep_runs": "for which runs of jobs are remembered",
    "maintenance.retain_export": "a folder that points are exported to before they are dropped",
    "maintenance.partitions": "make partitions ahead, finish what was interrupted",
    "maintenance.retention": "drop what is past",
    "maintenance.refresh": "bring rollups up to now",
    "maintenance.audit": "count rollups anew from points, and repair them: reads all there is",
    "maintenance.compress": "move old points to blocks",
    "maintenance.recompress": "fold late points into their blocks",
    "maintenance.verify": "read every block",
    "maintenance.vacuum": "vacuum and analyze what needs it",
    "maintenance.reindex": "build bloated indexes anew",
    "maintenance.warm": "fill the caches with what is asked often",
    "maintenance.cleanup": "remove expired records and what was left behind",
    "alerts.p95": "that 95 % of reads take at most",
    "alerts.slow": "that a statement on the server may take",
    "alerts.errors": "the share of calls that may fail",
    "alerts.lag": "that a replica may be behind",
    "alerts.hit_rate": "the share of spans that a cache shall have",
    "alerts.memory": "the share of its memory that a process, or Redis, may take",
    "alerts.pool": "the share of connections that may be in use",
    "alerts.silence": "how many times its interval a job may be without success",
    "alerts.ahead": "partitions that there shall be after the present one",
    "routing.wait": "that a write waits for there to be a primary",
    "routing.interval": "between looks at a node",
    "routing.deadline": "that a look may take",
    "routing.patience": "of silence after which a node is down",
    "routing.ejected": "the share of nodes that may be left alone because they fail",
    "routing.reads_primary": "read from the primary, too, and not only where no replica will do",
    "routing.small": "how a node is chosen for a small read: latency, least-connections, "
    "round-robin",
    "routing.bulk": "for a stream or an export",
    "routing.analysis": "for a long analysis",
    "routing.region": "where this process runs: nodes of the same region are read first",
    "cache.rules": "of which dataset and step what is kept where, in seconds; the first counts:\n"
    '{dataset = "candles", step = "1m", tiers = ["memory", "redis"], open = 60, closed = 86400}',
}
"""What the file says of each setting; line ends make comment lines."""


def defaults() -> dict[str, object]:
    """Return every setting's default by key, as TOML would have it."""
    plain = {f.name: f.default for f in fields(Settings)}
    return {
        "database.dsn": "postgresql://me@localhost/market",
        "database.schema": plain["schema"],
        "database.allow_newer_schema": plain["allow_newer_schema"],
        **{f"pool.{f.name}": f.default for f in fields(PoolOptions)},
        "pgbouncer.console": plain["console"],
        "log.slow": plain["slow"],
        "read.parallel": plain["parallel"],
        "write.earliest": iso(EARLIEST),
        "write.latest": iso(LATEST),
        **{f"chooser.{f.name}": f.default for f in fields(Limits)},
        **{f"prices.{f.name}": f.default for f in fields(Prices)},
        **{f"cache.{f.name}": f.default for f in fields(CacheOptions)},
        "cache.rules": [],
        **{f"decode.{f.name}": f.default for f in fields(DecodeOptions)},
        **{f"admission.{f.name}": f.default for f in fields(AdmissionOptions)},
        **{f"maintenance.{f.name}": f.default for f in fields(MaintenanceOptions)},
        **{f"alerts.{f.name}": f.default for f in fields(AlertOptions)},
        **{f"routing.{f.name}": f.default for f in fields(RoutingOptions)},
    }


def template() -> str:
    """Return the file's text."""
    lines = [_HEAD.rstrip()]
    section = ""
    for key, value in defaults().items():
        here, _, name = key.partition(".")
        if here != section:
            section = here
            about = _SECTIONS.get(section, "")
            lines += ["", f"[{section}]" + (f"  # {about}" if about else "")]
        lines += [f"# {line}" for line in NOTES[key].splitlines()]
        lines.append(f"#{name} = {json.dumps(value)}")
    return "\n".join([*lines, "", _SHARDS])
