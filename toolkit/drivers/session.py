"""What both doors say to a connection: pure text and arguments."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from psycopg import Error
from psycopg.conninfo import conninfo_to_dict
from psycopg.errors import FeatureNotSupported, InsufficientPrivilege, UndefinedFunction
from psycopg.sql import SQL, Literal

from toolkit.config import PoolOptions
from toolkit.drivers import Params
from toolkit.errors import ConfigError
from toolkit.statements import compose

NOT_TOLD = (InsufficientPrivilege, FeatureNotSupported, UndefinedFunction)
"""What a managed server may answer instead of its identifier; then None is remembered."""


@lru_cache
def arguments(conninfo: str, options: PoolOptions) -> dict[str, Any]:
    """Return the keyword arguments of a new connection; what the conninfo says itself wins.

    Not so for the encoding: binary COPY and the decoder speak UTF-8.
    """
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


@lru_cache
def prepare(options: PoolOptions) -> tuple[bytes, Params]:
    """Return the statement that sets up a session, and its parameters."""
    milliseconds = str(round(options.statement_timeout * 1000))
    return compose("session/prepare_connection"), {"statement_timeout": milliseconds}


def try_alone(name: str) -> tuple[bytes, Params]:
    """Return the statement that asks whether nobody else does what goes by a name."""
    return compose("session/try_alone"), {"name": name}


def patience(timeout: float) -> bytes:
    """Return what lets the next statements of a connection take so many seconds."""
    return SQL("SET statement_timeout = {}").format(Literal(round(timeout * 1000))).as_bytes(None)


def begin(
    snapshot: str | None, repeatable: bool, read_only: bool, timeout: float | None
) -> list[bytes]:
    """Return what to say right after BEGIN."""
    said = []
    modes = []
    if repeatable or snapshot is not None:
        modes.append("ISOLATION LEVEL REPEATABLE READ")
    if read_only:
        modes.append("READ ONLY")
    if modes:
        said.append(f"SET TRANSACTION {', '.join(modes)}".encode())
    if snapshot is not None:
        said.append(SQL("SET TRANSACTION SNAPSHOT {}").format(Literal(snapshot)).as_bytes(None))
    if timeout is not None:
        said.append(f"SET LOCAL statement_timeout = {max(1, round(timeout * 1000))}".encode())
    return said
