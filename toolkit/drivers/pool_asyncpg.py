"""An asyncpg pool for a service's own statements that is safe behind a pooler."""

from __future__ import annotations

import asyncio
import uuid
from dataclasses import dataclass
from functools import cache
from types import new_class
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

from psycopg.conninfo import conninfo_to_dict

from toolkit.drivers import session
from toolkit.errors import ConfigError, MissingExtra
from toolkit.options import PoolOptions

if TYPE_CHECKING:
    import asyncpg

# what asyncpg reads in a URL, and options, which it sends to the server as libpq does; the rest it
# would send as well, where a pooler refuses it
_KNOWN = frozenset(
    [
        "host",
        "port",
        "user",
        "password",
        "dbname",
        "passfile",
        "service",
        "target_session_attrs",
        "krbsrvname",
        "gsslib",
        "options",
        "sslmode",
        "sslcert",
        "sslkey",
        "sslrootcert",
        "sslcrl",
        "sslpassword",
        "sslnegotiation",
        "ssl_min_protocol_version",
        "ssl_max_protocol_version",
    ]
)
# what asks for security that asyncpg knows nothing of, and what of it asks for none
_DEMANDS = {
    "channel_binding": ("prefer", "disable"),
    "gssencmode": ("prefer", "disable"),
    "require_auth": (),
    "requirepeer": (),
    "sslcertmode": ("allow", "disable"),
    "sslcrldir": (),
}
_CACHED = 100  # statements a connection keeps prepared: asyncpg's own default


def pool(conninfo: str, ours: PoolOptions, **theirs: Any) -> asyncpg.Pool:
    """Return a pool; it connects when it is awaited or entered, as asyncpg's own does."""
    try:
        import asyncpg
    except ImportError:
        raise MissingExtra("asyncpg", "async", "toolkit.asyncpg_pool") from None
    parts = conninfo_to_dict(conninfo)
    named = {"application_name": parts.get("application_name") or ours.application_name}
    options = {
        "min_size": min(ours.min_size, theirs.get("max_size", ours.max_size)),
        "max_size": max(ours.max_size, theirs.get("min_size", 0)),
        "max_inactive_connection_lifetime": ours.max_idle,
        "timeout": float(parts.get("connect_timeout") or ours.connect_timeout),
        "command_timeout": ours.statement_timeout,
        **theirs,
        "server_settings": named | theirs.get("server_settings", {}),
    }
    cached = options.pop("statement_cache_size", _CACHED)
    connector = Connector(asyncpg.connect, cached)
    return asyncpg.create_pool(url(conninfo), connect=connector, **options)


def url(conninfo: str) -> str:
    """Return a conninfo as the URL that asyncpg takes, without what only libpq knows.

    Raises ConfigError for security that asyncpg would not give.

    >>> url("host=db1 dbname=x keepalives_idle=30")
    'postgresql://?dbname=x&host=db1'
    """
    parts = conninfo_to_dict(conninfo)
    for name, harmless in _DEMANDS.items():
        if (value := parts.get(name)) and value not in harmless:
            raise ConfigError(
                "dsn", name, f"asyncpg does not know {name}={value}; use psycopg, or leave it out"
            )
    if address := parts.pop("hostaddr", None):
        parts.setdefault("host", address)
    known = {name: str(value) for name, value in parts.items() if name in _KNOWN and value}
    return f"postgresql://?{urlencode(dict(sorted(known.items())))}"


@dataclass(frozen=True, slots=True)
class Found:
    """Whether a pool's connections lead to a pooler, and whether that tracks statements."""

    is_pooled: bool
    is_tracked: bool


class Connector:
    """Makes a pool's connections; the first finds out where they lead."""

    def __init__(self, connect: Any, cached: int) -> None:
        self._connect = connect
        self._cached = cached
        self._turn = asyncio.Lock()
        self.found: Found | None = None

    async def __call__(self, *args: Any, **options: Any) -> Any:
        async with self._turn:
            if self.found is None:
                self.found = await self._find_out(*args, **options)
        is_shared = self.found.is_pooled
        cached = self._cached if self.found.is_tracked or not is_shared else 0
        if is_shared:
            options["connection_class"] = _shared(options["connection_class"])
        return await self._connect(*args, statement_cache_size=cached, **options)

    async def _find_out(self, *args: Any, **options: Any) -> Found:
        connection = await self._connect(*args, statement_cache_size=0, **options)
        try:
            pid = await connection.fetchval("SELECT pg_backend_pid()")
            is_pooled = pid != connection.get_server_pid()
            return Found(is_pooled, is_pooled and await _is_tracked(connection))
        finally:
            await connection.close()


async def _is_tracked(connection: Any) -> bool:
    """Ask whether the pooler knows a prepared statement by a name of its own."""
    name = f"toolkit_{uuid.uuid4().hex}"
    async with connection.transaction():
        statement = await connection.prepare(session.find_prepared().decode(), name=name)
        names = [row[0] for row in await statement.fetch()]
        if name in names:
            await connection.execute(session.forget(name).decode())
        return bool(names) and name not in names


class _Shared:
    """What is different about a connection whose sessions belong to others as well.

    asyncpg has no public way to say it.
    """

    _server_caps: Any

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        # else jit would be switched off and on again in sessions of others, for every new type
        self._server_caps = self._server_caps._replace(jit=False)

    def get_reset_query(self) -> str:
        """Return nothing: RESET ALL would undo the settings of whoever is next."""
        return ""

    def _get_unique_id(self, prefix: str) -> str:
        # cursors have named statements: those of two processes must not meet in a session
        return f"__asyncpg_{prefix}_{uuid.uuid4().hex}__"


@cache
def _shared(base: type[Any]) -> type[Any]:
    return new_class(base.__name__, (_Shared, base))
