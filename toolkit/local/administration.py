"""What is asked of a PostgreSQL as its superuser, and changed there."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

from toolkit.errors import Unavailable
from toolkit.local import replication

if TYPE_CHECKING:
    import psycopg

ROLE = DATABASE = SCHEMA = "toolkit"
_CONNECT_S = 10
# what pg_rewind calls; https://www.postgresql.org/docs/current/app-pgrewind.html lists them
_REWIND = (
    "pg_catalog.pg_ls_dir(text, boolean, boolean)",
    "pg_catalog.pg_stat_file(text, boolean)",
    "pg_catalog.pg_read_binary_file(text)",
    "pg_catalog.pg_read_binary_file(text, bigint, bigint, boolean)",
)


class Administrator:
    """The superuser of the server on ``port``; connects for each call."""

    def __init__(self, port: int, password: str) -> None:
        self._port = port
        self._password = password

    @contextmanager
    def _connected(self, database: str = "postgres") -> Iterator[psycopg.Connection]:
        import psycopg  # here: only a start needs it, and it is slow to import

        try:
            with psycopg.connect(
                host="127.0.0.1",
                hostaddr="127.0.0.1",  # a PGHOSTADDR in the environment would win over host
                port=self._port,
                user="postgres",
                password=self._password,
                dbname=database,
                sslmode="disable",
                target_session_attrs="any",
                connect_timeout=_CONNECT_S,
                # local: nothing here waits for a standby that may not be there yet
                options="-c synchronous_commit=local -c statement_timeout=60s",
                autocommit=True,
            ) as connection:
                yield connection
        except psycopg.Error as error:
            raise Unavailable(f"PostgreSQL on port {self._port}: {error}") from error

    def bootstrap(self, password: str) -> None:
        """Make role, database and schema ``toolkit``, which the toolkit needs.

        The role owns the schema and nothing else: no superuser, no CREATE on the database. What
        needs more than that fails here as it would on a managed service.
        """
        from psycopg import sql

        role = sql.Identifier(ROLE)
        with self._connected() as connection:
            verifier = _verifier(connection, ROLE, password)
            connection.execute(
                sql.SQL(
                    "CREATE ROLE {} LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE PASSWORD {}"
                ).format(role, sql.Literal(verifier))
            )
            connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(DATABASE)))
        with self._connected(DATABASE) as connection:
            connection.execute(
                sql.SQL("CREATE SCHEMA {} AUTHORIZATION {}").format(sql.Identifier(SCHEMA), role)
            )

    def settle_replication(self, password: str, standbys: Iterable[str]) -> None:
        """On a primary: the replication role, and a slot for each standby and for no other.

        The role ``toolkit`` may see statistics: whose log a replica receives is among them, and
        after a failover one is read only when that is known.
        """
        from psycopg import sql

        role = sql.Identifier(replication.ROLE)
        wanted = {replication.slot_of(node) for node in standbys}
        with self._connected() as connection:
            known = connection.execute(
                "SELECT FROM pg_roles WHERE rolname = %s", [replication.ROLE]
            ).fetchone()
            if known is None and wanted:
                verifier = _verifier(connection, replication.ROLE, password)
                connection.execute(
                    sql.SQL("CREATE ROLE {} LOGIN REPLICATION PASSWORD {}").format(
                        role, sql.Literal(verifier)
                    )
                )
            if wanted:
                for function in _REWIND:
                    grant = sql.SQL("GRANT EXECUTE ON FUNCTION {} TO {}")
                    connection.execute(grant.format(sql.SQL(function), role))
                connection.execute(
                    sql.SQL("GRANT pg_read_all_stats TO {}").format(sql.Identifier(ROLE))
                )
            self._settle_slots(connection, wanted)

    def _settle_slots(self, connection: psycopg.Connection, wanted: set[str]) -> None:
        there = {
            str(name): lost
            for name, lost in connection.execute(
                "SELECT slot_name, wal_status = 'lost' FROM pg_replication_slots "
                "WHERE slot_type = 'physical' AND slot_name ~ '^toolkit_pg[0-9]+$'"
            )
        }
        for slot in [name for name, lost in there.items() if lost or name not in wanted]:
            connection.execute(
                # an active one is somebody's who still ends: the next start drops it
                "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots "
                "WHERE slot_name = %s AND NOT active",
                [slot],
            )
            there.pop(slot)
        for slot in sorted(wanted - there.keys()):
            connection.execute("SELECT pg_create_physical_replication_slot(%s, true)", [slot])

    def drop_slots(self) -> None:
        """On a standby: the slots of the time when it was a primary; they would keep WAL."""
        with self._connected() as connection:
            self._settle_slots(connection, set())

    def checkpoint(self) -> None:
        """Let the control file say the newest timeline; pg_rewind reads it there."""
        with self._connected() as connection:
            connection.execute("CHECKPOINT")

    def secrets(self, roles: Iterable[str]) -> Mapping[str, str]:
        """The SCRAM secrets of roles, as PgBouncer wants them."""
        with self._connected() as connection:
            found = connection.execute(
                "SELECT rolname, rolpassword FROM pg_authid "
                "WHERE rolname = ANY(%s) AND rolpassword IS NOT NULL",
                [list(roles)],
            )
            return {str(role): str(secret) for role, secret in found}

    def followers(self) -> Mapping[str, str]:
        """On a primary: the standbys it sends to, "streaming" or still catching up ("catchup").

        A standby's own word does not do: its receiver says "streaming" before it is let in. Nor
        does this alone: one that went past a promotion comes back for the old timeline for ever.
        """
        with self._connected() as connection:
            found = connection.execute(
                "SELECT application_name, state FROM pg_stat_replication "
                "WHERE state IN ('streaming', 'catchup')"
            )
            return {str(name): str(state) for name, state in found}

    def receives(self) -> tuple[int | None, bool]:
        """On a standby: the timeline it receives, and whether it holds back what it received."""
        with self._connected() as connection:
            row = connection.execute(
                "SELECT (SELECT received_tli FROM pg_stat_wal_receiver WHERE status = 'streaming'),"
                " pg_is_in_recovery() AND pg_is_wal_replay_paused()"
            ).fetchone()
        assert row is not None
        timeline, is_paused = row
        return timeline, bool(is_paused)


def _verifier(connection: psycopg.Connection, role: str, password: str) -> str:
    """A SCRAM verifier, made here, so that no statement carries the password to the log."""
    made = connection.pgconn.encrypt_password(password.encode(), role.encode(), b"scram-sha-256")
    return made.decode()
