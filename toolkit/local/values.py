"""What callers get to see of an instance: its addresses and its status."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from toolkit.local.administration import DATABASE, ROLE
from toolkit.local.state import PGBOUNCER, State


@dataclass(frozen=True, slots=True, repr=False)
class Endpoints:
    """How to reach the servers. The addresses carry passwords; the ``repr`` does not.

    ``dsn`` is the role ``toolkit`` on the primary, which owns the schema ``toolkit`` in the
    database of that name, may see all statistics where there are replicas, and nothing else;
    ``admin_dsn`` is the superuser, for tests and administration. ``replicas`` are the role's
    addresses on the standbys by the nodes' names, ``admins`` the superuser's, to promote one.
    ``pooled`` leads to the primary through PgBouncer, ``console_dsn`` to PgBouncer's own
    console; both are None where there is none.
    """

    dsn: str
    admin_dsn: str
    redis_url: str
    primary: str
    replicas: Mapping[str, str] = field(default_factory=dict)
    pooled: str | None = None
    console_dsn: str | None = None
    admins: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def from_state(cls, state: State, primary: str, standbys: Sequence[str]) -> Endpoints:
        """The addresses of an instance that has been up."""
        pooled = state.is_pooled and state.pgbouncer_port is not None
        return cls(
            _dsn(state, primary),
            _admin(state, primary),
            f"redis://:{state.valkey_password}@127.0.0.1:{state.valkey_port}/0",
            primary,
            {node: _dsn(state, node) for node in standbys},
            _pooled(state, DATABASE) if pooled else None,
            _address("pgbouncer", state.pgbouncer_password, state.pgbouncer_port, "pgbouncer")
            if pooled
            else None,
            {node: _admin(state, node) for node in standbys},
        )

    def topology(self) -> str:
        """The servers as a part of ``toolkit.toml``, with passwords: a shard, and the console."""
        replicas = [f"    {_node(name, dsn, self.pooled)}," for name, dsn in self.replicas.items()]
        return "\n".join(
            [
                "[[shards]]",
                'name = "local"',
                f"primary = {_node(self.primary, self.dsn, self.pooled)}",
                *(["replicas = [", *replicas, "]"] if replicas else []),
                "",
                *(["[pgbouncer]", f'console = "{self.console_dsn}"', ""] if self.pooled else []),
            ]
        )

    def masked(self) -> Endpoints:
        """The same addresses with ``***`` for the passwords, fit to be shown."""
        return replace(
            self,
            dsn=_mask(self.dsn),
            admin_dsn=_mask(self.admin_dsn),
            redis_url=_mask(self.redis_url),
            replicas={node: _mask(dsn) for node, dsn in self.replicas.items()},
            admins={node: _mask(dsn) for node, dsn in self.admins.items()},
            pooled=self.pooled and _mask(self.pooled),
            console_dsn=self.console_dsn and _mask(self.console_dsn),
        )

    def labelled(self) -> dict[str, str]:
        """Each address under a name to print it by."""
        found = {"dsn": self.dsn, "admin_dsn": self.admin_dsn, "redis_url": self.redis_url}
        for node, dsn in self.replicas.items():
            found |= {node: dsn, f"{node} admin": self.admins[node]}
        if self.pooled is not None and self.console_dsn is not None:
            found |= {"pooled": self.pooled, "console_dsn": self.console_dsn}
        return found

    def __repr__(self) -> str:
        return f"Endpoints({', '.join(self.masked().labelled().values())})"


def _address(role: str, password: str, port: int | None, database: str) -> str:
    # sslmode: a PGSSLMODE meant for another server must not keep us from this one
    return f"postgresql://{role}:{password}@127.0.0.1:{port}/{database}?sslmode=disable"


def _dsn(state: State, node: str) -> str:
    return _address(ROLE, state.toolkit_password, state.port_of(node), DATABASE)


def _admin(state: State, node: str) -> str:
    return _address("postgres", state.admin_password, state.port_of(node), "postgres")


def _pooled(state: State, database: str) -> str:
    return _address(ROLE, state.toolkit_password, state.port_of(PGBOUNCER), database)


def _node(name: str, direct: str, pooled: str | None) -> str:
    """A node as an inline table; through PgBouncer each has a database of its own name.

    >>> _node("pg2", "postgresql://ana@h:1/shop", "postgresql://ana@h:9/shop?x=1")
    '{ name = "pg2", dsn = "postgresql://ana@h:9/pg2?x=1", direct = "postgresql://ana@h:1/shop" }'
    """
    if pooled is None:
        return f'{{ name = "{name}", dsn = "{direct}" }}'
    place, _, rest = pooled.rpartition("/")
    dsn = f"{place}/{name}{rest[rest.index('?') :] if '?' in rest else ''}"
    return f'{{ name = "{name}", dsn = "{dsn}", direct = "{direct}" }}'


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
    start. ``is_ready`` means that it takes connections.

    ``role`` is a PostgreSQL's: "primary", "replica", or "replaced" for a primary in whose place
    another was promoted. ``stream`` says how a replica that runs follows: "streaming", "catching
    up", "paused" or "not streaming".
    """

    server: str
    pid: int | None
    port: int | None
    version: str | None
    is_ready: bool
    data: Path
    log: Path
    node: str | None = None
    role: str | None = None
    stream: str | None = None


@dataclass(frozen=True, slots=True)
class Status:
    """All servers of an instance; ``postgres`` is the primary, ``others`` the other nodes."""

    name: str
    root: Path
    postgres: ServerStatus
    valkey: ServerStatus
    others: tuple[ServerStatus, ...] = ()
    pgbouncer: ServerStatus | None = None

    @property
    def servers(self) -> tuple[ServerStatus, ...]:
        """All of them."""
        pooler = () if self.pgbouncer is None else (self.pgbouncer,)
        return (self.postgres, *self.others, *pooler, self.valkey)

    @property
    def is_ready(self) -> bool:
        return all(server.is_ready for server in self.servers)
