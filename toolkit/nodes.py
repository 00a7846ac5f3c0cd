"""What each node of a topology is and has, and what is wrong with that: for people who look."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from psycopg.conninfo import conninfo_to_dict

from toolkit.catalog import REVISION, VERSION_TABLE
from toolkit.cluster import Cluster
from toolkit.drivers import Driver
from toolkit.drivers.session import lacking
from toolkit.errors import DatabaseError, ToolkitError, Unavailable
from toolkit.statements import compose, name
from toolkit_routing import Health, Lag, Node, Role, Shard

_MOST_SKEW_S = 1.0
_MOST_LAG_S = 10.0
_LOOKS = 4


@dataclass(frozen=True, slots=True)
class NodeReport:
    """One node: what it was declared to be, what it is, and what is wrong (``problems``).

    ``remarks`` are worth knowing, and no fault. ``skew_s`` is by how much its clock is ahead of
    ours, ``revision`` that of the toolkit's schema.
    """

    shard: str
    name: str
    declared: str
    role: str
    is_up: bool
    region: str
    version: str
    timeline: int | None
    lag: Lag
    skew_s: float | None
    revision: str | None
    settings: Mapping[str, str] = field(default_factory=dict)
    problems: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()


async def describe_nodes(cluster: Cluster, schema: str) -> list[NodeReport]:
    """Look at every node of a shard, and say what stands against using it as declared."""
    await cluster.heard(of_all=True)
    shard, health = cluster.shard, cluster.health
    for _ in range(_LOOKS):  # how old a replica is shows when the primary has been seen before it
        if all(health.lag(n, 0.0).seconds is not None for n, s in health.nodes.items() if s.is_up):
            break
        await cluster.home.pause(cluster.options.interval)
    facts: dict[str, Mapping[str, str]] = {}
    revisions: dict[str, str | None] = {}
    lacks: dict[str, tuple[str, ...]] = {}
    problems: dict[str, list[str]] = {node.name: [] for node in shard.nodes}
    for node in shard.nodes:
        if not health.nodes[node.name].is_up:
            continue
        driver = cluster.drivers[node.name]
        try:
            lacks[node.name] = (await driver.open()).lacks
            rows = await driver.fetch(compose("routing/describe_node"), timeout=5.0)
            facts[node.name] = {key: value for key, value in rows if value is not None}
            revisions[node.name] = await _revision(driver, schema)
        except ToolkitError as error:
            problems[node.name].append(_unasked(node, error))
    newest = revisions.get(health.primary.name) if health.primary is not None else None
    reports, now = [], time.monotonic()
    for node in shard.nodes:
        found = problems[node.name]
        found += _problems(shard, node, health, now)
        if node.name in facts:
            found += _about_schema(node.name, revisions.get(node.name), newest)
        remarks = list(_remarks(node, health, facts.get(node.name, {}), len(shard.replicas)))
        if lacks.get(node.name):
            remarks.append(lacking(lacks[node.name]))
        reports.append(_report(shard, node, health, now, facts, revisions, found, remarks))
    return reports


def _unasked(node: Node, error: ToolkitError) -> str:
    """Say why a node that is up could not be asked, where its name stands before it."""
    said = str(error).removeprefix(f"{node.name}: ")
    if not node.direct or type(error) is not Unavailable:
        return said
    parts = conninfo_to_dict(node.conninfo)
    host, port = parts.get("hostaddr") or parts.get("host"), parts.get("port") or 5432
    return f"the server is up, but the pooler before it, at {host}:{port}, is not: {said}"


async def _revision(driver: Driver, schema: str) -> str | None:
    table = name(schema, VERSION_TABLE)
    try:
        rows = await driver.fetch(compose("routing/find_revision", table=table), timeout=5.0)
    except (DatabaseError, ToolkitError):
        return None
    return rows[0][0] if rows else None


def _problems(shard: Shard, node: Node, health: Health, now: float) -> Iterator[str]:
    standing, lag = health.nodes[node.name], health.lag(node.name, now)
    if standing.role is Role.FOREIGN:
        primary = shard.primary.name
        yield f"belongs to another cluster than {primary}; give a replica of it"
    elif standing.role is Role.FENCED:
        yield f"{standing.why}; it gets no writes: make it a replica, or take it out"
    elif not standing.is_up:
        yield f"down: {standing.why}"
    if not standing.is_up:
        return
    if node is shard.primary and standing.role is Role.REPLICA and health.primary is None:
        yield "declared primary, but is a replica, and no other node takes writes"
    sample = standing.sample
    if sample is not None and abs(sample.skew) > _MOST_SKEW_S:
        yield f"its clock is {sample.skew:+.1f} s off ours"
    if standing.role is Role.REPLICA:
        if lag.is_paused:
            yield "its replay is paused: SELECT pg_wal_replay_resume()"
        if lag.receiver is False:
            yield "is not connected to what it replicates"
        if lag.bytes is None:
            yield "how far it is behind is not known; it is read only where the age does not matter"
        elif lag.seconds is not None and lag.seconds > _MOST_LAG_S:
            yield f"is {lag.seconds:.0f} s behind"


def _about_schema(node: str, revision: str | None, newest: str | None) -> Iterator[str]:
    if revision is None:
        yield "the schema is not there; run: toolkit migrate up (on the primary)"
    elif newest is not None and revision != newest:
        yield f"its schema is at revision {revision}, the primary's at {newest}: it is behind"
    elif revision < REVISION:
        yield f"the schema is at revision {revision}, not {REVISION}; run: toolkit migrate up"


def _remarks(node: Node, health: Health, facts: Mapping[str, str], replicas: int) -> Iterator[str]:
    standing = health.nodes[node.name]
    if standing.role is Role.PRIMARY and replicas and facts:
        names = facts.get("synchronous_standby_names", "")
        commit = facts.get("synchronous_commit", "on")
        if not names or commit in ("off", "local"):
            unreceived = _unreceived(health)
            now = f", now {unreceived:,} bytes" if unreceived is not None else ""
            yield (
                "commits do not wait for a replica: when it dies, what none has received is lost"
                f"{now}; synchronous_standby_names = 'ANY 1 (*)' ends that"
            )
    if standing.role is Role.REPLICA and facts.get("hot_standby_feedback") == "off":
        yield "hot_standby_feedback is off: long reads may be cancelled by the replay"
    if standing.role is Role.REPLICA and facts.get("sees_receiver") == "false":
        yield (
            "the role may not see whose log it receives: after a failover it is read from only "
            "when that is written down, which may take minutes; GRANT pg_read_all_stats ends that"
        )


def _unreceived(health: Health) -> int | None:
    """Return how much of the primary's log no replica has; None where that is not known."""
    received = [
        max(sample.lsn or 0, sample.received or 0)
        for node in health.nodes.values()
        if node.role is Role.REPLICA and (sample := node.sample) is not None
        if sample.timeline == health.timeline and (sample.lsn, sample.received) != (None, None)
    ]
    written = health.position
    return max(0, written.lsn - max(received)) if written is not None and received else None


def _report(
    shard: Shard,
    node: Node,
    health: Health,
    now: float,
    facts: Mapping[str, Mapping[str, str]],
    revisions: Mapping[str, str | None],
    problems: Sequence[str],
    remarks: Sequence[str],
) -> NodeReport:
    standing = health.nodes[node.name]
    sample = standing.sample
    return NodeReport(
        shard.name,
        node.name,
        "primary" if node is shard.primary else "replica",
        standing.role.value,
        standing.is_up,
        node.region,
        _version(sample.version) if sample is not None else "",
        standing.timeline,
        health.lag(node.name, now),
        sample.skew if sample is not None else None,
        revisions.get(node.name),
        facts.get(node.name, {}),
        tuple(problems),
        tuple(remarks),
    )


def _version(number: int) -> str:
    """Return a server's version for people.

    >>> _version(180006), _version(0)
    ('18.6', '')
    """
    return f"{number // 10_000}.{number % 10_000}" if number else ""


def as_mapping(report: NodeReport) -> dict[str, Any]:
    """Return a report as JSON has it."""
    lag = report.lag
    return {
        "shard": report.shard,
        "node": report.name,
        "declared": report.declared,
        "role": report.role,
        "is_up": report.is_up,
        "region": report.region,
        "version": report.version,
        "timeline": report.timeline,
        "lag_bytes": lag.bytes,
        "lag_s": lag.seconds,
        "sample_age_s": lag.age if lag.age != float("inf") else None,
        "receiver": lag.receiver,
        "is_paused": lag.is_paused,
        "clock_skew_s": report.skew_s,
        "revision": report.revision,
        "settings": dict(report.settings),
        "problems": list(report.problems),
        "remarks": list(report.remarks),
    }
