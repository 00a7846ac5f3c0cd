"""From what a caller names to settings with a database in them; local servers where none is."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import replace

from toolkit.config import Settings, environment, load_settings
from toolkit.errors import ConfigError

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


def check_conninfo(dsn: str, origin: str) -> None:
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
            "database.dsn",
            f"{problem}; give postgresql://user:password@host:port/name (special characters "
            "%-encoded) or key=value words",
        )
