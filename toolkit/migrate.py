"""Running the migrations: one process at a time, with deadlines, on any number of retries."""

from __future__ import annotations

import importlib.resources
import io
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util.exc import CommandError
from sqlalchemy import Connection, create_engine
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import NullPool

from toolkit.catalog import VERSION_TABLE
from toolkit.ddl import ident, literal
from toolkit.drivers.failures import translate
from toolkit.drivers.session import arguments, needs_own
from toolkit.errors import Busy, SchemaError
from toolkit.options import PoolOptions

_LOCK_TIMEOUT = "2s"
_TRIES = 20
# search_path: a role called as the schema has it as its default one, which autogenerate calls None
_SESSION = """SELECT set_config('timezone', 'UTC', false), set_config('lock_timeout', %s, false),
       set_config('search_path', 'pg_catalog', false)"""
# CREATE SCHEMA IF NOT EXISTS asks for the right to create even where there is nothing to do
_SCHEMA_SQL = """DO $schema$
BEGIN
    IF to_regnamespace({text}) IS NULL THEN
        CREATE SCHEMA {name};
    END IF;
END
$schema$;

"""


@dataclass(frozen=True, slots=True)
class Revision:
    """One migration and whether the database has it."""

    id: str
    title: str
    is_applied: bool


@dataclass(frozen=True, slots=True)
class Status:
    """Where a database stands; ``current`` is None before the first migration."""

    current: str | None
    head: str
    pending: tuple[Revision, ...]

    @property
    def is_current(self) -> bool:
        return self.current == self.head


def _config(schema: str, out: io.StringIO | None = None) -> Config:
    installed = importlib.resources.files("toolkit") / "_migrations"
    folder = Path(str(installed))
    if not folder.is_dir():
        folder = Path(__file__).resolve().parent.parent / "migrations"
    config = Config(output_buffer=out) if out else Config()
    config.set_main_option("script_location", str(folder).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    config.attributes["schema"] = schema
    return config


@contextmanager
def connected(conninfo: str) -> Iterator[Connection]:
    """Yield a SQLAlchemy connection over psycopg, in UTC, with a lock timeout."""
    engine = create_engine(
        "postgresql+psycopg://", creator=lambda: _session(conninfo), poolclass=NullPool
    )
    try:
        with engine.connect() as connection:
            yield connection
    except psycopg.Error as error:
        raise translate(error) from error
    except DBAPIError as error:
        if isinstance(error.orig, psycopg.Error):
            raise translate(error.orig) from error
        raise
    finally:
        engine.dispose()


def _session(conninfo: str) -> psycopg.Connection[Any]:
    options = PoolOptions(application_name="toolkit migrate")
    connection = psycopg.connect(conninfo, **{**arguments(conninfo, options), "autocommit": False})
    told = connection.execute("SELECT pg_backend_pid()").fetchone()
    if told != (connection.info.backend_pid,):
        connection.close()
        raise needs_own("migrate")
    connection.execute(_SESSION, (_LOCK_TIMEOUT,))
    connection.commit()
    return connection


def upgrade(
    conninfo: str,
    *,
    schema: str = "toolkit",
    revision: str = "head",
    deadline_s: float = 60.0,
    on_progress: Callable[[str], None] = lambda _: None,
) -> Status:
    """Bring the schema up to ``revision``; another migration under way is waited for.

    Each migration is one transaction under a lock timeout: it never makes readers or writers
    queue for long, and is tried again, with a pause, when a lock could not be had.
    """
    with connected(conninfo) as connection:
        _make_schema(connection, schema)
        _run(connection, schema, command.upgrade, revision, deadline_s, on_progress)
        return _status(connection, schema)


def downgrade(
    conninfo: str,
    *,
    schema: str = "toolkit",
    revision: str,
    deadline_s: float = 60.0,
    on_progress: Callable[[str], None] = lambda _: None,
) -> Status:
    """Take the schema back to ``revision`` (``"base"``: nothing of the toolkit is left)."""
    with connected(conninfo) as connection:
        _run(connection, schema, command.downgrade, revision, deadline_s, on_progress)
        status = _status(connection, schema)
        if status.current is None:
            connection.exec_driver_sql(f"DROP TABLE IF EXISTS {ident(schema, VERSION_TABLE)}")
            connection.commit()
        return status


def status(conninfo: str, *, schema: str = "toolkit") -> Status:
    """Say which migrations the database has and lacks."""
    with connected(conninfo) as connection:
        return _status(connection, schema)


def history(conninfo: str, *, schema: str = "toolkit") -> tuple[Revision, ...]:
    """Return all migrations, oldest first."""
    with connected(conninfo) as connection:
        current = _current(connection, schema)
    return _revisions(schema, current)


def sql(*, schema: str = "toolkit", revision: str = "head") -> str:
    """Return the SQL of the migrations without connecting (``"0001:0002"`` for a part)."""
    out = io.StringIO()
    if ":" not in revision:
        out.write(_SCHEMA_SQL.format(name=ident(schema), text=literal(ident(schema))))
    try:
        command.upgrade(_config(schema, out), revision, sql=True)
    except CommandError as error:
        raise SchemaError(f"migrate sql {revision}: {error}") from None
    return out.getvalue()


def head() -> str:
    """Return the newest revision this version of the toolkit knows."""
    found = ScriptDirectory.from_config(_config("toolkit")).get_current_head()
    assert found is not None
    return found


def _run(
    connection: Connection,
    schema: str,
    step: Callable[[Config, str], None],
    revision: str,
    deadline_s: float,
    on_progress: Callable[[str], None],
) -> None:
    config = _config(schema)
    config.attributes["connection"] = connection
    _check_not_ahead(connection, schema)
    _become_owner(connection, schema)
    with _locked(connection, schema, deadline_s):
        for attempt in range(1, _TRIES + 1):
            try:
                step(config, revision)
                connection.commit()
                return
            except CommandError as error:
                raise SchemaError(f"revision {revision!r}: {error}") from None
            except DBAPIError as error:
                connection.rollback()
                state = getattr(error.orig, "sqlstate", None)
                if state == "55000" and isinstance(error.orig, psycopg.Error):
                    raise SchemaError(error.orig.diag.message_primary or str(error.orig)) from None
                locked = state in ("55P03", "40P01")
                if not locked or attempt == _TRIES:
                    raise
                on_progress(f"a lock is taken, try {attempt} of {_TRIES}")
                time.sleep(random.uniform(0.1, 0.3) * min(attempt, 5))  # noqa: S311


@contextmanager
def _locked(connection: Connection, schema: str, deadline_s: float) -> Iterator[None]:
    key = f"toolkit migrate {schema}"
    until = time.monotonic() + deadline_s
    while True:
        got = connection.exec_driver_sql(
            "SELECT pg_try_advisory_lock(hashtextextended(%s, 0))", (key,)
        ).scalar()
        connection.commit()
        if got:
            break
        if time.monotonic() >= until:
            raise Busy(
                f"another migration of schema {schema!r} is running: {_holder(connection, key)}"
            )
        time.sleep(0.1)
    try:
        yield
    finally:
        if not connection.invalidated:
            connection.rollback()
            connection.exec_driver_sql("SELECT pg_advisory_unlock(hashtextextended(%s, 0))", (key,))
            connection.commit()


def _holder(connection: Connection, key: str) -> str:
    row = connection.exec_driver_sql(
        "SELECT a.pid, a.usename, a.application_name, a.client_addr::text, a.backend_start::text "
        "FROM pg_locks l JOIN pg_stat_activity a USING (pid) "
        "WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 1 "
        "AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database()) "
        "AND (l.classid::bigint << 32 | l.objid::bigint) = hashtextextended(%s, 0)",
        (key,),
    ).one_or_none()
    connection.commit()
    if row is None:
        return "it has just finished; try again"
    pid, user, application, address, since = row
    what = f" ({application})" if application else ""
    place = address or "a local socket"
    return f"server process {pid}{what}, user {user}, from {place}, since {since}"


def _make_schema(connection: Connection, schema: str) -> None:
    exists = connection.exec_driver_sql(
        "SELECT 1 FROM pg_namespace WHERE nspname = %s", (schema,)
    ).scalar()
    if not exists:
        connection.exec_driver_sql(f"CREATE SCHEMA IF NOT EXISTS {ident(schema)}")
    connection.commit()


def _become_owner(connection: Connection, schema: str) -> None:
    """Let what is made belong to whom the rest does, whoever of its members migrates."""
    owner = connection.exec_driver_sql(
        "SELECT o.rolname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace "
        "JOIN pg_roles o ON o.oid = c.relowner "
        "WHERE n.nspname = %s AND c.relname = %s AND o.rolname <> current_user "
        "AND pg_has_role(o.oid, 'MEMBER')",
        (schema, VERSION_TABLE),
    ).scalar()
    if owner is not None:
        connection.exec_driver_sql(f"SET ROLE {ident(owner)}")
    connection.commit()


def _current(connection: Connection, schema: str) -> str | None:
    options = {"version_table": VERSION_TABLE, "version_table_schema": schema}
    context = MigrationContext.configure(connection, opts=options)
    current = context.get_current_revision()
    connection.commit()
    return current


def _check_not_ahead(connection: Connection, schema: str) -> None:
    current = _current(connection, schema)
    if current is not None and current not in {r.id for r in _revisions(schema, None)}:
        raise SchemaError(
            f"schema {schema!r} is at revision {current}, which this version of the toolkit does "
            f"not know (its newest is {head()}); upgrade the package"
        )


def _status(connection: Connection, schema: str) -> Status:
    current = _current(connection, schema)
    pending = tuple(r for r in _revisions(schema, current) if not r.is_applied)
    return Status(current, head(), pending)


def _revisions(schema: str, current: str | None) -> tuple[Revision, ...]:
    script = ScriptDirectory.from_config(_config(schema))
    found = [(r.revision, r.doc.rstrip(".")) for r in reversed(list(script.walk_revisions()))]
    ids = [id_ for id_, _ in found]
    upto = ids.index(current) if current in ids else (-1 if current is None else len(ids))
    return tuple(Revision(id_, title, i <= upto) for i, (id_, title) in enumerate(found))
