"""What PostgreSQL and psycopg say, in the toolkit's own errors: translated once, here."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
from psycopg_pool import PoolClosed, PoolTimeout, TooManyRequests

from toolkit.errors import (
    AccessDenied,
    Busy,
    DatabaseError,
    DiskFull,
    NoConnection,
    OutcomeUnknown,
    QueryTimeout,
    ReadOnlyDatabase,
    SchemaError,
    ToolkitError,
    Unavailable,
)
from toolkit_routing import Load

_LOST = ("08", "57P")  # SQLSTATE classes of a server that went away
_NO_ENTRY = (
    "password authentication failed",
    "no pg_hba.conf entry",
    "no password supplied",
    "does not exist",  # the role, or the database
    "permission denied for database",
    "is not permitted to log in",
)
DENIED = "the server refused the connection"
"""What every AccessDenied says."""
MAINTAINERS = "this is a maintainer's: toolkit check --grants --as maintainer prints what lacks"
"""The way out of what no lesser role may."""
_LACKS = (
    "toolkit check --grants prints what lacks, --as maintainer what jobs, refreshes and DDL need"
)
_FULL = (
    "too many clients already",
    "too many connections for",  # the role, or the database
    "remaining connection slots are reserved",
    "no more connections allowed",  # PgBouncer's max_client_conn
)


@contextmanager
def translated(node: str) -> Iterator[None]:
    """Raise the toolkit's errors for psycopg's."""
    try:
        yield
    except (psycopg.Error, PoolTimeout) as error:
        raise translate(error, node) from error


@contextmanager
def answering(node: str, load: Load) -> Iterator[None]:
    """The same for a question to a node, which counts as its load; slow counts, answered or not."""
    began, is_answer = time.monotonic(), True
    load.inflight += 1
    try:
        yield
    except (psycopg.Error, PoolTimeout) as error:
        found = translate(error, node)
        is_answer = isinstance(found, QueryTimeout)
        raise found from error
    except BaseException:
        is_answer = False
        raise
    finally:
        load.inflight -= 1
        if is_answer:
            now = time.monotonic()
            load.done(now, now - began)


def translate(error: BaseException, node: str = "") -> ToolkitError:
    """Return the toolkit's error for one of the driver's; ``node`` names the server in it."""
    if isinstance(error, ToolkitError):
        return error
    found = _translated(error, node)
    if isinstance(found, Unavailable):
        found.node = node
    return found


def _translated(error: BaseException, node: str) -> ToolkitError:
    place = f"{node}: " if node else ""
    if isinstance(error, PoolTimeout | TooManyRequests):
        cause = error.__cause__ or error.__context__
        why = f" ({_first_line(cause)})" if isinstance(cause, psycopg.Error) else ""
        return NoConnection(f"{place}no connection was free in time: {_first_line(error)}{why}")
    if isinstance(error, PoolClosed):
        return Unavailable(f"{place}connections to it were cut")
    if not isinstance(error, psycopg.Error):
        return DatabaseError(f"{place}{type(error).__name__}: {_first_line(error)}")
    state, text = error.sqlstate, _first_line(error)
    if is_full(error):
        return NoConnection(f"{place}the server has no connection left: {text}")
    if state is None or state.startswith(("28", "3D")):
        return _no_connection(error, place, text)
    if state.startswith(_LOST):
        return Unavailable(f"{place}connection lost: {text}")
    match state:
        case "23505":
            detail = f": {error.diag.message_detail}" if error.diag.message_detail else ""
            return DatabaseError(f"{place}{text}{detail}", state)
        case "57014":
            return QueryTimeout(f"{place}cancelled on the server: {text}", state)
        case "0A000" if "cached plan" in text:
            return SchemaError(f"{place}the schema has changed meanwhile ({text}); try again")
        case "25006":
            return ReadOnlyDatabase(f"{place}the server is read-only: {text}", state)
        case "53100":
            return DiskFull(f"{place}the server's disk is full; nothing was stored: {text}", state)
        case "55P03":
            return Busy(f"{place}a lock was not free in time: {text}")
        case "42P01" | "3F000" | "42883" | "42703":
            return SchemaError(
                f"{place}the schema is not what this version expects ({text}); "
                "run: toolkit migrate up"
            )
        case "42501":
            # what is the owner's cannot be granted; who lacks another right may need that one only
            hint = MAINTAINERS if "must be owner" in text else _LACKS
            return DatabaseError(f"{place}the role lacks a privilege: {text}; {hint}", state)
    constraint = error.diag.constraint_name
    return DatabaseError(f"{place}{text} (SQLSTATE {state})", state, constraint)


def is_lost(connection: psycopg.BaseConnection[Any], error: psycopg.Error) -> bool:
    """Tell a connection that died from a statement that failed."""
    return connection.broken or isinstance(translate(error), Unavailable)


def is_full(error: psycopg.Error) -> bool:
    """Tell a server that is there, but has no connection left, from one that is not.

    An error during connecting carries no SQLSTATE, only the server's words.
    """
    return error.sqlstate == "53300" or any(words in str(error) for words in _FULL)


def is_denied(text: str) -> bool:
    """Tell from a server's words that it lets nobody in, and not that it is not there."""
    return any(words in text for words in _NO_ENTRY)


def no_turn(node: str, timeout: float) -> QueryTimeout:
    """Return the error of a call whose deadline passed before it got a connection."""
    return QueryTimeout(f"{node}: no connection was free within {timeout:.3g} s", "57014")


def too_long(node: str, timeout: float) -> QueryTimeout:
    """Return the error of a call whose deadline passed while another asked the same."""
    return QueryTimeout(
        f"{node}: another call asked for the same, and had no answer within {timeout:.3g} s",
        "57014",
    )


def unknown_outcome(node: str) -> OutcomeUnknown:
    """Return the error of a COMMIT whose reply never came."""
    return OutcomeUnknown(
        f"the connection to {node} was lost while it committed; whether it is stored is unknown: "
        "look, or repeat it if it is idempotent"
    )


def _no_connection(error: psycopg.Error, place: str, text: str) -> ToolkitError:
    denied = (error.sqlstate or "").startswith(("28", "3D")) or is_denied(text)
    if denied:
        return AccessDenied(f"{place}{DENIED}: {text}")
    if isinstance(error, psycopg.OperationalError | psycopg.InterfaceError):
        return Unavailable(f"{place}cannot be reached: {text}")
    return DatabaseError(f"{place}{text}")


def _first_line(error: BaseException | None) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
