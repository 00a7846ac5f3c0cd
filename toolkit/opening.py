"""From what a caller names to settings with a database in them; local servers where none is."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

from toolkit.config import Settings, environment, load_settings
from toolkit.errors import ConfigError

if TYPE_CHECKING:
    from toolkit.cluster import Cluster
    from toolkit_routing import Node

_PORTS = re.compile(r"[0-9]*(,[0-9]*)*")


def resolve(
    source: str | os.PathLike[str] | Settings | None = None,
    flags: Mapping[str, object] | None = None,
    *,
    migrates: bool = True,
    on_progress: Callable[[str], None] = lambda _: None,
) -> Settings:
    """Return settings whose ``dsn`` is set, as :func:`toolkit.connect` describes.

    Where no database is named the local servers are started if they are down, and, with
    ``migrates``, brought to the newest migration. ``flags`` are those of ``load_settings``.
    """
    settings = load_settings(source, flags=flags)
    if settings.topology is not None:
        check_nodes(settings)
        primary = settings.topology.shards[0].primary
        return replace(settings, dsn=primary.direct or primary.conninfo)
    if settings.dsn is not None:
        check_conninfo(settings.dsn, settings.origins.get("database.dsn", "settings"))
        return settings
    from toolkit.local import LocalServers, default_root

    endpoints = LocalServers(default_root(environment()), on_progress=on_progress).up()
    if migrates:
        from toolkit import migrate

        if not migrate.status(endpoints.dsn, schema=settings.schema).is_current:
            on_progress("migrating the local database")
            migrate.upgrade(endpoints.dsn, schema=settings.schema)
    return replace(settings, dsn=endpoints.dsn)


def primary_of(settings: Settings) -> str:
    """Return the address past any pooler of the server that takes the writes at the moment.

    Of several servers that is found out; NoPrimary where none does.
    """
    if settings.topology is None:
        assert settings.dsn is not None
        return settings.dsn
    found = primary_node(settings)
    return found.direct or found.conninfo


def primary_node(settings: Settings) -> Node:
    """Return the node of a topology that takes the writes at the moment; NoPrimary if none does."""
    from toolkit.drivers import drive

    with cluster_of(settings) as cluster:
        name = drive(cluster.primary())
        (found,) = [node for node in cluster.shard.nodes if node.name == name]
        return found


@contextmanager
def cluster_of(settings: Settings) -> Iterator[Cluster]:
    """Yield the nodes of a topology for who looks at them, and opens no store."""
    from toolkit.cluster import Cluster
    from toolkit.drivers import drive
    from toolkit.drivers.blocking import BlockingDriver

    assert settings.topology is not None
    shard, pool = settings.topology.shards[0], settings.pool
    doors = {n.name: BlockingDriver(n.conninfo, pool, n.name, n.direct, True) for n in shard.nodes}
    cluster = Cluster(shard, doors, pool, settings.routing)
    try:
        yield cluster
    finally:
        drive(cluster.close())


def check_nodes(settings: Settings) -> None:
    """Refuse addresses of nodes that libpq cannot read, or of one server, by their entries."""
    assert settings.topology is not None
    origin = settings.origins.get("shards", "settings")
    seen: dict[object, str] = {}
    for number, shard in enumerate(settings.topology.shards):
        for place, node in enumerate(shard.nodes):
            where = f"shards[{number}]." + (f"replicas[{place - 1}]" if place else "primary")
            check_conninfo(node.conninfo, origin, f"{where}.dsn")
            check_conninfo(node.direct, origin, f"{where}.direct")
            for way, address in (("dsn", node.conninfo), ("direct", node.direct)):
                if not address:
                    continue
                other = seen.setdefault((way, _place(address)), node.name)
                if other != node.name:
                    problem = f"leads to the same server and database as {other!r}; take one out"
                    raise ConfigError(origin, f"{where}.{way}", problem)


def _place(conninfo: str) -> tuple[object, ...]:
    """Return what of a conninfo says where it leads.

    >>> _place("host=a user=ana dbname=shop") == _place("postgresql://eve:x@a:5432/shop")
    True
    """
    from psycopg.conninfo import conninfo_to_dict

    parts = conninfo_to_dict(conninfo)
    database = parts.get("dbname") or parts.get("user")
    port = parts.get("port") or (None if parts.get("service") else "5432")
    rest = ("host", "hostaddr", "service", "target_session_attrs")
    return port, database, *map(parts.get, rest)


def check_conninfo(dsn: str, origin: str, key: str = "database.dsn") -> None:
    """Refuse what libpq cannot read, without repeating it: there may be a password in it."""
    from psycopg import Error
    from psycopg.conninfo import conninfo_to_dict

    try:
        parts = conninfo_to_dict(dsn)
        host, ports = str(parts.get("host") or ""), str(parts.get("port") or "")
        problem = "" if _PORTS.fullmatch(ports) else "the port is not a number"
        # in words, not in a URL, a leading @ is an abstract socket
        if "@" in host and ("://" in dsn or not host.startswith("@")):
            problem = "the host has an @ in it, as it has where an @ in the password is not %40"
    except Error as error:
        # libpq quotes the piece it stumbled over, and an unescaped password makes it stumble
        problem = re.sub(r'"[^"]*"', '"…"', str(error).strip())
    if problem:
        raise ConfigError(
            origin,
            key,
            f"{problem}; give postgresql://user:password@host:port/name (special characters "
            "%-encoded) or key=value words",
        )
