"""What both doors say to a connection: pure text and arguments."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from psycopg import BaseConnection, Error, capabilities
from psycopg.conninfo import conninfo_to_dict
from psycopg.errors import FeatureNotSupported, InsufficientPrivilege, UndefinedFunction
from psycopg.sql import SQL, Identifier, Literal

from toolkit.drivers import Params
from toolkit.errors import ConfigError, Unavailable
from toolkit.options import PoolOptions
from toolkit.statements import compose

_log = logging.getLogger("toolkit.drivers")
# what a lost server means we say ourselves; this hides nothing from who has set up logging
logging.getLogger("psycopg.pool").addHandler(logging.NullHandler())
_OURS = "_pg3_"
NOT_TOLD = (InsufficientPrivilege, FeatureNotSupported, UndefinedFunction)
"""What a managed server may answer instead of its identifier; then None is remembered."""


def arguments(conninfo: str, options: PoolOptions) -> dict[str, Any]:
    """Return the keyword arguments of a new connection; what the conninfo says itself wins.

    Not so for the encoding: binary COPY and the decoder speak UTF-8.
    """
    return dict(_arguments(conninfo, options))


@lru_cache
def _arguments(conninfo: str, options: PoolOptions) -> Params:
    ours = {
        "connect_timeout": max(1, round(options.connect_timeout)),
        "application_name": options.application_name,
        "keepalives_idle": 30,
    }
    try:
        theirs = conninfo_to_dict(conninfo)
    except Error as error:
        raise ConfigError("dsn", "", f"not a conninfo: {str(error).strip()}") from None
    unset = {k: v for k, v in ours.items() if k not in theirs}
    return {**unset, "autocommit": True, "client_encoding": "UTF8"}


@lru_cache
def identify() -> bytes:
    """Return the statement that asks for the server's system identifier."""
    return compose("session/identify_server")


@dataclass(frozen=True, slots=True)
class Reached:
    """What a connection leads to: the server, or a pooler before it.

    Behind a pooler the next transaction may be in another session, so none of them is set up;
    ``lacks`` names the settings that the role or the pooler does not give them. Statements are
    ``prepared`` where they are known in every session, and planned for their values.
    """

    is_pooled: bool = False
    lacks: tuple[str, ...] = ()
    is_prepared: bool = True
    timeout: float = 0.0


DIRECT = Reached()


def prepare(options: PoolOptions, pid: int) -> tuple[bytes, Params]:
    """Return the statement that sets up a session, and its parameters.

    ``pid`` is the one that the connection was told when it was made.
    """
    milliseconds = str(round(options.statement_timeout * 1000))
    params = {"pid": pid, "statement_timeout": milliseconds}
    return compose("session/prepare_connection"), params


def reached(options: PoolOptions, row: Sequence[Any], is_tracked: bool) -> Reached:
    """Return what `prepare` has found; ``is_tracked`` is what `is_renamed` said."""
    is_direct, plans, jit, isolation, timeout, _ = row
    if is_direct:
        return DIRECT
    lacks = []
    if not 0 < timeout <= options.statement_timeout:
        lacks.append("statement_timeout")
    if jit != "off":
        lacks.append("jit")
    if isolation != "read committed":
        lacks.append("default_transaction_isolation")
    is_planned = plans == "force_custom_plan"
    return Reached(True, tuple(lacks), is_tracked and is_planned, options.statement_timeout)


def log_change(node: str, before: Reached, now: Reached) -> None:
    """Say once what a node's connections lead to, and what would spare them round trips."""
    if now == before:
        return
    how = "prepared" if now.is_prepared else "unprepared"
    _log.info("%s is behind a pooler: statements go %s", node, how)
    if now.lacks and now.lacks != before.lacks:
        _log.warning("%s: %s", node, lacking(now.lacks))


def lacking(settings: Sequence[str]) -> str:
    """Return what it means that sessions are not given some settings, and what ends that."""
    return (
        f"sessions behind the pooler lack {', '.join(settings)}, so each statement takes a "
        "transaction; set it by connect_query (toolkit pgbouncer render) or ALTER ROLE … SET"
    )


def find_prepared() -> bytes:
    """Return the statement that asks by what name the server knows it."""
    return compose("session/find_prepared")


def is_renamed(names: Sequence[str]) -> bool:
    """Tell from those names whether a pooler keeps track of prepared statements.

    psycopg closes its own by messages that the pooler sees only with a libpq of 17 or newer.
    """
    ours = [name for name in names if name.startswith(_OURS)]
    return bool(names) and not ours and capabilities.has_send_close_prepared()


def forget(name: str) -> bytes:
    """Return what makes the server forget a statement that it knows by our name."""
    return SQL("DEALLOCATE {}").format(Identifier(name)).as_bytes(None)


def needs_own(node: str) -> ConfigError:
    """Return the error of what a pooler cannot do: it is said to one session and outlasts it."""
    return ConfigError(
        node,
        "direct",
        "this needs a session of its own, and the address leads to a pooler such as PgBouncer; "
        "give the server's own address as direct, beside dsn in [[shards]]",
    )


def no_follower(node: str) -> Unavailable:
    """Return the error of a transaction that would wait for a session while another holds one.

    A pooler may have no more of them, and all who hold one may wait for another.
    """
    return Unavailable(f"{node}: a pooler may have no second session to spare")


class Stale(FeatureNotSupported):
    """A prepared statement whose columns have changed since; run again, it is planned anew."""


@contextmanager
def planned_anew(connection: BaseConnection[Any]) -> Iterator[None]:
    """Let a connection prepare no more once a migration has changed what it had prepared.

    To prepare the same text again would not do behind a pooler, which has it by that text.
    """
    try:
        yield
    except FeatureNotSupported as error:
        if "cached plan" not in str(error):
            raise
        connection.prepare_threshold = None
        raise Stale(str(error)) from error


def try_alone(name: str) -> tuple[bytes, Params]:
    """Return the statement that asks whether nobody else does what goes by a name."""
    return compose("session/try_alone"), {"name": name}


def patience(timeout: float) -> bytes:
    """Return what lets the next statements of a connection take so many seconds.

    Where none are left it is a millisecond: 0 would be as long as they like.
    """
    milliseconds = max(1, round(timeout * 1000))
    return SQL("SET statement_timeout = {}").format(Literal(milliseconds)).as_bytes(None)


def begin(
    snapshot: str | None,
    repeatable: bool,
    read_only: bool,
    timeout: float | None,
    where: Reached = DIRECT,
) -> list[bytes]:
    """Return what to say right after BEGIN."""
    said = []
    modes = []
    if repeatable or snapshot is not None:
        modes.append("ISOLATION LEVEL REPEATABLE READ")
    elif "default_transaction_isolation" in where.lacks:
        modes.append("ISOLATION LEVEL READ COMMITTED")
    if read_only:
        modes.append("READ ONLY")
    if modes:
        said.append(f"SET TRANSACTION {', '.join(modes)}".encode())
    if snapshot is not None:
        said.append(SQL("SET TRANSACTION SNAPSHOT {}").format(Literal(snapshot)).as_bytes(None))
    if "jit" in where.lacks:
        said.append(b"SET LOCAL jit = off")
    if timeout is None and "statement_timeout" in where.lacks:
        timeout = where.timeout
    if timeout is not None:
        said.append(f"SET LOCAL statement_timeout = {max(1, round(timeout * 1000))}".encode())
    return said
