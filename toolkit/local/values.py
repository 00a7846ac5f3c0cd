"""What callers get to see of an instance: its addresses and its status."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from toolkit.local.bootstrap import DATABASE, ROLE
from toolkit.local.layout import State


@dataclass(frozen=True, slots=True, repr=False)
class Endpoints:
    """How to reach the servers. The addresses carry passwords; the ``repr`` does not.

    ``dsn`` is the role ``toolkit``, which owns the schema ``toolkit`` in the database of that
    name and may do nothing else; ``admin_dsn`` is the superuser, for tests and administration.
    """

    dsn: str
    admin_dsn: str
    redis_url: str

    @classmethod
    def from_state(cls, state: State) -> Endpoints:
        """The addresses of an instance that has been up."""
        # sslmode: a PGSSLMODE meant for another server must not keep us from this one
        place = f"127.0.0.1:{state.postgres_port}"
        return cls(
            f"postgresql://{ROLE}:{state.toolkit_password}@{place}/{DATABASE}?sslmode=disable",
            f"postgresql://postgres:{state.admin_password}@{place}/postgres?sslmode=disable",
            f"redis://:{state.valkey_password}@127.0.0.1:{state.valkey_port}/0",
        )

    def masked(self) -> Endpoints:
        """The same addresses with ``***`` for the passwords, fit to be shown."""
        return Endpoints(*(_mask(url) for url in (self.dsn, self.admin_dsn, self.redis_url)))

    def __repr__(self) -> str:
        shown = self.masked()
        return f"Endpoints({shown.dsn}, {shown.admin_dsn}, {shown.redis_url})"


def _mask(url: str) -> str:
    """
    >>> _mask("redis://:secret@127.0.0.1:1/0")
    'redis://:***@127.0.0.1:1/0'
    """
    scheme, _, rest = url.partition("://")
    login, _, place = rest.rpartition("@")
    return f"{scheme}://{login.partition(':')[0]}:***@{place}"


@dataclass(frozen=True, slots=True)
class ServerStatus:
    """One server; ``pid`` and ``version`` are None while it is down, ``port`` before its first
    start. ``is_ready`` means that it takes connections."""

    server: str
    pid: int | None
    port: int | None
    version: str | None
    is_ready: bool
    data: Path
    log: Path


@dataclass(frozen=True, slots=True)
class Status:
    """Both servers of an instance."""

    name: str
    root: Path
    postgres: ServerStatus
    valkey: ServerStatus

    @property
    def is_ready(self) -> bool:
        return self.postgres.is_ready and self.valkey.is_ready
