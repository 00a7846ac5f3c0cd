"""PgBouncer's administration console, and what the servers behind it say of themselves."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Sequence
from typing import Any

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from toolkit.drivers import session
from toolkit.drivers.failures import translate
from toolkit.drivers.sockets import shut_down
from toolkit.errors import AccessDenied, Busy, ConfigError, QueryTimeout, UnknownName
from toolkit.options import PoolOptions
from toolkit.pgbouncer import OPEN, Facts
from toolkit.statements import compose

Row = dict[str, Any]
PORT = 6432
SHOWN = ("pools", "clients", "servers", "stats", "databases", "config")
_ADDRESS = (
    "host",
    "hostaddr",
    "port",
    "user",
    "password",
    "passfile",
    "service",
)


def console_of(conninfo: str) -> str:
    """Return the address of the console of the PgBouncer that an address leads through.

    >>> console_of("host=db1 port=6432 user=ana dbname=shop keepalives_idle=9")
    'user=ana host=db1 port=6432 dbname=pgbouncer'
    """
    parts = conninfo_to_dict(conninfo)
    kept = {k: v for k, v in parts.items() if k in _ADDRESS or k.startswith("ssl")}
    return make_conninfo("", **{**kept, "dbname": OPEN})


class Console:
    """One PgBouncer's console: connects for each command, and is done with it by ``deadline``.

    It knows the simple protocol only, no parameters and no BEGIN.
    """

    def __init__(self, conninfo: str, deadline: float = 10.0) -> None:
        try:
            parts = conninfo_to_dict(conninfo)
        except psycopg.Error:
            parts = {}
        if not parts or ("://" in conninfo and "@" in str(parts.get("host"))):
            raise ConfigError(  # not repeated: there may be a password in it
                "pgbouncer",
                "console",
                "is no conninfo; give host=… port=6432 user=… dbname=pgbouncer, or a URL with "
                "special characters %-encoded",
            )
        if not parts.get("service"):  # that may name both
            parts = {"port": PORT, "dbname": OPEN, **parts}
        self._conninfo = make_conninfo("", **parts)
        place = parts.get("hostaddr") or parts.get("host") or "localhost"
        self.node = f"PgBouncer at {place}:{parts.get('port') or PORT}"
        self._deadline = deadline

    def version(self) -> str:
        """Return its version, such as 1.24.1."""
        return str(self._ask("SHOW VERSION")[0]["version"]).removeprefix("PgBouncer ")

    def show(self, what: str) -> list[Row]:
        """Return what it shows of one of SHOWN."""
        if what not in SHOWN:
            raise UnknownName("view", what, SHOWN)
        return self._ask(f"SHOW {what.upper()}")

    def reload(self) -> None:
        """Let it read its files again."""
        self._ask("RELOAD")

    def pause(self, database: str | None = None) -> None:
        """Let transactions end, and clients wait, until `resume`.

        What has not come about by the deadline is taken back, which may take as long again.
        """
        until = self._until()
        place = self._place(database, until)
        try:
            self._ask(f"PAUSE{place}", until)
        except QueryTimeout as error:
            self._ask(f"RESUME{place}")  # else clients would wait on
            raise Busy(
                f"{self.node}: not paused: after {self._deadline:g} s there are still transactions "
                "to wait for; give them longer with --wait, or look: toolkit pgbouncer show clients"
            ) from error

    def resume(self, database: str | None = None) -> None:
        """Let clients go on."""
        self._act("RESUME", database)

    def reconnect(self, database: str | None = None) -> None:
        """Replace the servers' sessions, each at the end of its transaction."""
        self._act("RECONNECT", database)

    def _act(self, command: str, database: str | None) -> None:
        until = self._until()
        self._ask(command + self._place(database, until), until)

    def _place(self, database: str | None, until: float) -> str:
        """Return how a command names a database; nothing for all."""
        if database is None:
            return ""
        there = [row["name"] for row in self._ask("SHOW DATABASES", until)]
        if database not in there:
            raise UnknownName("database", database, there, self.node)
        quoted = database.replace('"', '""')
        return f" {database}" if database.isidentifier() else f' "{quoted}"'

    def _until(self) -> float:
        return time.monotonic() + self._deadline

    def _ask(self, command: str, until: float | None = None) -> list[Row]:
        try:
            return asyncio.run(self._answer(command, until or self._until()))
        except TimeoutError:
            raise QueryTimeout(f"{self.node}: no answer within {self._deadline:g} s") from None
        except psycopg.Error as error:
            if _is_so(error):
                return []
            raise self._explained(error) from error

    async def _answer(self, command: str, until: float) -> list[Row]:
        async with asyncio.timeout(until - time.monotonic()):
            options = PoolOptions(connect_timeout=self._deadline)
            arguments = session.arguments(self._conninfo, options)
            connection = await psycopg.AsyncConnection.connect(self._conninfo, **arguments)
        try:
            asking = asyncio.create_task(_rows(connection, command))
            done, _ = await asyncio.wait({asking}, timeout=max(0.0, until - time.monotonic()))
            if not done:  # to cancel it would be to wait for what says nothing
                shut_down(connection)
                await asyncio.wait({asking})
                asking.exception()
                raise TimeoutError
            return asking.result()
        finally:
            connection.pgconn.finish()

    def _explained(self, error: psycopg.Error) -> Exception:
        text = " ".join(str(error).split())
        if error.sqlstate == "42704" or re.search(r'database "pgbouncer" does not exist', text):
            return ConfigError(
                self.node,
                "console",
                f"this is no PgBouncer, a PostgreSQL answers ({text}); give the address of "
                "PgBouncer's console: --console, or console in [pgbouncer]",
            )
        if "not allowed" in text or "admin access needed" in text:
            return AccessDenied(
                f"{self.node}: this user may not do that ({text}); name it in admin_users "
                "(stats_users, to look only) and reload, or give the console's address with a "
                "user who may: --console, or console in [pgbouncer]"
            )
        return translate(error, self.node)


async def _rows(connection: psycopg.AsyncConnection[Any], command: str) -> list[Row]:
    cursor = psycopg.AsyncClientCursor(connection)
    await cursor.execute(command.encode())
    if cursor.description is None:
        return []
    names = [column.name for column in cursor.description]
    return [dict(zip(names, row, strict=True)) for row in await cursor.fetchall()]


def _is_so(error: psycopg.Error) -> bool:
    """Tell an error that says all is already as it should be: paused, or not."""
    return any(words in str(error) for words in ("not paused", "already paused", "already susp"))


def read_facts(conninfo: str, roles: Sequence[str], options: PoolOptions, node: str) -> Facts:
    """Ask a server how many sessions it has, and for the secrets of roles if it gives them."""
    try:
        arguments = session.arguments(conninfo, options)
        with psycopg.connect(conninfo, **arguments) as connection:
            params = {"roles": list(roles)}
            row = connection.execute(compose("pgbouncer/read_limits"), params).fetchone()
            assert row is not None
            limit, reserved, others = row
            try:
                found = connection.execute(compose("pgbouncer/read_secrets"), params).fetchall()
            except psycopg.errors.InsufficientPrivilege:
                return Facts(limit, reserved, others)
            secrets = {str(role): str(secret) for role, secret in found}
            return Facts(limit, reserved, others, secrets)
    except psycopg.Error as error:
        raise translate(error, node) from error
