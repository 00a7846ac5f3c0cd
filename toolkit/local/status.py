"""What of an instance runs, and in which role, without changing anything."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace

from toolkit.errors import Unavailable
from toolkit.local import pgbouncer, valkey
from toolkit.local.administration import DATABASE, Administrator
from toolkit.local.layout import Layout
from toolkit.local.pgbouncer import PgBouncer
from toolkit.local.postgres import Postgres
from toolkit.local.probe import refusal
from toolkit.local.replication import is_replaced, nodes, primary_of, told
from toolkit.local.state import State
from toolkit.local.valkey import Valkey
from toolkit.local.values import ServerStatus, Status
from toolkit.pgbouncer import CONNECT_QUERY


def is_settled(layout: Layout, state: State) -> bool:
    """Whether all servers run that should, and each was told what it should be."""
    found = nodes(layout, state)
    primary = primary_of(found)
    if primary is None:
        return False
    return (
        all(
            is_ready(node, state, name) and node.replication() == told(layout, state, name)
            for name, node in found.items()
            if name == primary or not is_replaced(node)
        )
        and _is_pooling_settled(layout, state, primary)
        and is_valkey_ready(valkey_of(layout), state)
    )


def is_ready(node: Postgres, state: State, name: str) -> bool:
    """Whether a node runs on its port and takes connections."""
    running = node.running() if node.is_made else None
    return (
        running is not None
        and running.is_ready
        and running.port is not None
        and running.port == state.nodes[name]
        # the pid file goes on saying ready while a crashed server recovers
        and refusal(running.port, state.toolkit_password) is None
    )


def valkey_of(layout: Layout) -> Valkey:
    """The Valkey of an instance."""
    return Valkey(layout.valkey, layout.logs / "valkey.log")


def is_valkey_ready(server: Valkey, state: State) -> bool:
    """Whether Valkey runs on its port and takes our password."""
    return (
        state.valkey_port is not None
        and server.running() is not None
        and valkey.version(state.valkey_port, state.valkey_password) is not None
    )


def pgbouncer_of(layout: Layout) -> PgBouncer:
    """The PgBouncer of an instance."""
    return PgBouncer(layout.pgbouncer, layout.logs / "pgbouncer.log")


def is_pgbouncer_ready(server: PgBouncer, state: State) -> bool:
    """Whether PgBouncer runs on its port and its console takes our password."""
    return (
        state.pgbouncer_port is not None
        and server.running() is not None
        and pgbouncer.version(state.pgbouncer_port, state.pgbouncer_password) is not None
    )


def pgbouncer_text(layout: Layout, state: State, primary: str) -> str:
    """The configuration of an instance's PgBouncer.

    Each node has a database of its name; every other name leads to the primary's.
    """
    # what a store would else have to say in every transaction
    setup = f"connect_query='{CONNECT_QUERY.format(30_000)}'"
    places = {name: f"host=127.0.0.1 port={port}" for name, port in state.nodes.items()}
    databases = {name: f"{place} dbname={DATABASE} {setup}" for name, place in places.items()}
    databases["*"] = f"{places[primary]} {setup}"
    server = pgbouncer_of(layout)
    return pgbouncer.configuration(server.home, server.log, state.pgbouncer_port or 0, databases)


def _is_pooling_settled(layout: Layout, state: State, primary: str) -> bool:
    server = pgbouncer_of(layout)
    if not state.is_pooled:
        return server.running() is None
    return is_pgbouncer_ready(server, state) and server.has_configuration(
        pgbouncer_text(layout, state, primary)
    )


def status(layout: Layout, state: State | None, version: str | None) -> Status:
    """All servers of an instance; ``version`` is that of PostgreSQL where it runs."""
    found = nodes(layout, state or State())
    primary = primary_of(found) or next(iter(found))
    of = {name: _node_status(layout, state, name, primary, version) for name in found}
    if state is not None and of[primary].is_ready and len(of) > 1:
        streams, timeline = _followers(state, primary), found[primary].timeline
        for name, one in of.items():
            if one.is_ready and one.role == "replica":
                stream = _stream(state, name, streams.get(name), timeline)
                of[name] = replace(one, stream=stream)
    pooler = _pgbouncer_status(layout, state) if state is not None and state.is_pooled else None
    return Status(
        layout.name,
        layout.root,
        of.pop(primary),
        _valkey_status(layout, state),
        tuple(of.values()),
        pooler,
    )


def _node_status(
    layout: Layout, state: State | None, name: str, primary: str, version: str | None
) -> ServerStatus:
    node = nodes(layout, state or State())[name]
    running = node.running() if node.is_made else None
    ready = state is not None and is_ready(node, state, name)
    role = "replaced" if is_replaced(node) else "replica"
    return ServerStatus(
        "PostgreSQL",
        running.pid if running else None,
        state.nodes[name] if state else None,
        version if running else None,
        ready,
        node.data,
        node.log,
        name,
        "primary" if name == primary and not node.is_standby else role,
    )


def _followers(state: State, primary: str) -> Mapping[str, str]:
    with suppress(Unavailable):  # it has just gone
        return Administrator(state.nodes[primary] or 0, state.admin_password).followers()
    return {}


def _stream(state: State, name: str, sent: str | None, timeline: int) -> str:
    """How a replica that runs follows."""
    with suppress(Unavailable):
        received, is_paused = Administrator(state.nodes[name] or 0, state.admin_password).receives()
        if sent is not None and received == timeline:
            return "paused" if is_paused else "catching up" if sent == "catchup" else "streaming"
    return "not streaming"


def _pgbouncer_status(layout: Layout, state: State) -> ServerStatus:
    server = pgbouncer_of(layout)
    pid, port = server.running(), state.pgbouncer_port
    version = pgbouncer.version(port, state.pgbouncer_password) if pid and port else None
    return ServerStatus(
        "PgBouncer", pid, port, version, version is not None, server.home, server.log
    )


def _valkey_status(layout: Layout, state: State | None) -> ServerStatus:
    server = valkey_of(layout)
    pid, port = server.running(), state.valkey_port if state else None
    version = valkey.version(port, state.valkey_password) if state and pid and port else None
    return ServerStatus("Valkey", pid, port, version, version is not None, server.home, server.log)
