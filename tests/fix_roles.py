"""A reader, a writer and a maintainer beside the owner of a test's database, and no right too many.

    def test_it(cast: Cast) -> None:
        with cast.store("reader") as store:
            ...

What PUBLIC may by default is taken from it, so that each role has what the toolkit grants only.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import psycopg
import pytest
from fix_servers import Database
from fix_stores import open_store
from psycopg import sql

from toolkit import granting
from toolkit.drivers.direct import Direct
from toolkit.options import PoolOptions
from toolkit.roles import ROLES, Ground

_PUBLIC = (
    "REVOKE ALL ON DATABASE {database} FROM PUBLIC",
    "REVOKE ALL ON ALL FUNCTIONS IN SCHEMA toolkit FROM PUBLIC",
    "GRANT CONNECT, TEMPORARY ON DATABASE {database} TO toolkit",
)


@dataclass(frozen=True, slots=True)
class Cast:
    """Who plays in a test: roles by what they are, on one database."""

    database: Database
    names: dict[str, str]

    def dsn(self, role: str) -> str:
        """The address for a role; of the owner for "owner"."""
        if role == "owner":
            return self.database.dsn
        parts = urlsplit(self.database.dsn)
        login = f"{self.names[role]}:hush"
        return parts._replace(netloc=f"{login}@{parts.netloc.rpartition('@')[2]}").geturl()

    def store(self, role: str, colour: str = "blocking") -> AbstractContextManager[Any]:
        """A store that is called without await, as a role."""
        return open_store(colour, self.dsn(role))

    def admin(self, *statements: str) -> None:
        """Run statements as the superuser."""
        with psycopg.connect(self.database.admin_dsn, autocommit=True) as admin:
            for statement in statements:
                admin.execute(statement.encode())

    def direct(self, role: str = "admin") -> Direct:
        """A session as a role, or as the superuser."""
        dsn = self.database.admin_dsn if role == "admin" else self.dsn(role)
        return Direct(dsn, PoolOptions())

    def ground(self) -> Ground:
        with self.direct() as direct:
            return granting.find_ground(direct, "toolkit")[0]

    def grant(self, roles: Sequence[str] = ROLES) -> list[str]:
        """Give each role what it lacks, as the superuser."""
        with self.direct() as direct:
            ground, _ = granting.find_ground(direct, "toolkit")
            return granting.apply(direct, ground, {self.names[r]: r for r in roles})


@pytest.fixture
def cast(database: Database) -> Iterator[Cast]:
    """The roles, each with its rights."""
    with cast_on(database) as cast:
        yield cast


@contextmanager
def cast_on(database: Database) -> Iterator[Cast]:
    """Make the roles on a database, and drop them at the end."""
    cast = Cast(database, {role: f"{database.name}_{role}" for role in ROLES})
    names = [sql.Identifier(name) for name in cast.names.values()]
    with psycopg.connect(database.admin_dsn, autocommit=True) as admin:
        for statement in _PUBLIC:
            admin.execute(sql.SQL(statement).format(database=sql.Identifier(database.name)))
        for name in names:
            admin.execute(sql.SQL("CREATE ROLE {} LOGIN PASSWORD 'hush'").format(name))
        try:
            cast.grant()
            yield cast
        finally:
            admin.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = ANY (%s)",
                [list(cast.names.values())],
            )
            for name in names:
                admin.execute(sql.SQL("DROP OWNED BY {}").format(name))
                admin.execute(sql.SQL("DROP ROLE {}").format(name))
