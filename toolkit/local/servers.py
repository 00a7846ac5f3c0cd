"""`LocalServers`: PostgreSQL servers, a PgBouncer and a Valkey, up or down as one."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path

from toolkit.errors import ConfigError, Unavailable
from toolkit.local import debian, lock
from toolkit.local.account import Account, choose_account
from toolkit.local.binaries import (
    major,
    postgres_version,
    postgres_wheel,
    system_postgres,
    valkey_wheel,
)
from toolkit.local.folders import discard
from toolkit.local.layout import FIRST, Layout
from toolkit.local.postgres import Postgres
from toolkit.local.replication import is_replaced, node, nodes, primary_of
from toolkit.local.startup import Startup, compare_settings
from toolkit.local.state import DamagedState, State
from toolkit.local.status import is_settled, pgbouncer_of, status, valkey_of
from toolkit.local.values import Endpoints, Status

log = logging.getLogger(__name__)

MOST_REPLICAS = 8


class LocalServers:
    """An instance of the local servers: ``<root>/<name>``.

    The servers are daemons: they outlive this process and run until `down`. They listen on
    127.0.0.1 only and ask for passwords, which are kept with the ports in a 0600 file. Started
    by root they run as the user ``postgres``, or else ``nobody``.

    ``pg_bin`` names the folder of a system PostgreSQL instead of the wheel's; the instance goes
    on using it until `reset`. ``settings`` are PostgreSQL's own and hold from the next start.

    The object holds no connection and no lock between calls: it may be shared between threads,
    and any number of processes may use the same instance at once.
    """

    def __init__(
        self,
        root: Path,
        *,
        name: str = "default",
        pg_bin: Path | None = None,
        settings: Mapping[str, str] | None = None,
        on_progress: Callable[[str], None] | None = None,
        lock_timeout_s: float = 60.0,
    ) -> None:
        self.layout = Layout(root.expanduser().resolve(), name)
        self._pg_bin = pg_bin
        self._settings = dict(settings or {})
        self._on_progress = on_progress
        self._lock_timeout_s = lock_timeout_s

    def __repr__(self) -> str:
        return f"LocalServers({str(self.layout.root)!r}, name={self.layout.name!r})"

    def up(
        self,
        *,
        replicas: int | None = None,
        pgbouncer: bool | None = None,
        sync: bool | None = None,
    ) -> Endpoints:
        """Start what is not running, making it first where it was never made.

        Connects to servers that are up and changes nothing (some milliseconds, once psycopg is
        imported); a first start takes seconds. Servers that do not take connections yet, or are
        going down, are waited for, and started again where they went.

        ``replicas`` says how many standbys follow the primary, ``pgbouncer`` whether there is
        one, ``sync`` whether a commit waits until one replica has it. What is None stays as it
        was; all of it is kept until `reset`. After a promotion the nodes have the roles they
        have: replicas are told to follow the new primary, and the old one is left alone.
        """
        state = State.load(self.layout.state)
        if (
            self._pg_bin is None
            and state is not None
            and self._wished(state, replicas, pgbouncer, sync) == state
            and is_settled(self.layout, state)
        ):
            compare_settings(node(self.layout, self._primary(state)), self._settings)
            return self._endpoints(state)
        with self._starting() as run:
            return self._up_all(run, self._wished(run.state, replicas, pgbouncer, sync))

    def rejoin(self, name: str) -> Endpoints:
        """Make a node follow the primary that was replaced by it, or lost it.

        What only that node has is lost: it is rewound to where the two parted, or copied anew.
        """
        with self._starting() as run:
            primary = self._primary(run.state)
            if name not in run.state.nodes or name == primary:
                others = [node for node in run.state.nodes if node != primary]
                raise ConfigError(
                    "local servers",
                    "rejoin",
                    f"{name!r} is no node that could follow {primary}, the primary; those that "
                    f"could: {', '.join(others) or 'none'}",
                )
            return self._up_all(run, run.state, name)

    def down(self) -> bool:
        """Stop all servers, keeping the data; True if one was running."""
        if not self.layout.home.exists():
            return False
        with self._lock():
            return self._stop(fast=True)

    def reset(self) -> None:
        """Stop all servers and delete their data; there will be one PostgreSQL again.

        Passwords and ports stay as they were; where they cannot be read there will be new ones.
        """
        if not self.layout.home.exists():
            return
        with self._lock():
            try:
                state = State.load(self.layout.state)  # another user's: before anything is gone
            except DamagedState:
                state = State()
            self._stop(fast=False)
            layout = self.layout
            for folder in (*layout.all_data(), layout.valkey, layout.pgbouncer, layout.logs):
                discard(folder)
            layout.passfile.unlink(missing_ok=True)
            if state is not None:
                ports = {FIRST: state.nodes.get(FIRST)}
                fresh = replace(state, pg_bin=None, nodes=ports, is_pooled=False, is_sync=False)
                fresh.save(layout.state)
        self._say("deleted the data")

    def endpoints(self) -> Endpoints:
        """The addresses, without starting anything; `Unavailable` if it was never up."""
        state = State.load(self.layout.state)
        if state is None or None in state.nodes.values() or state.valkey_port is None:
            raise Unavailable(
                f"no local servers in {self.layout.home} yet; `toolkit up` makes them"
            )
        return self._endpoints(state)

    def status(self) -> Status:
        """What runs, without starting or changing anything."""
        state = State.load(self.layout.state)
        return status(self.layout, state, self._running_version(state))

    # -- deciding ---------------------------------------------------------------------------

    def _wished(
        self, state: State, replicas: int | None, pgbouncer: bool | None, sync: bool | None
    ) -> State:
        if replicas is not None:
            if not 0 <= replicas <= MOST_REPLICAS:
                raise ConfigError(
                    "local servers", "replicas", f"{replicas} is not between 0 and {MOST_REPLICAS}"
                )
            state = state.with_nodes(replicas + 1, self._by_worth(state))
        if pgbouncer is not None:
            state = replace(state, is_pooled=pgbouncer)
        if sync and len(state.nodes) == 1:
            raise ConfigError("local servers", "sync", "needs a replica; add --replicas 1")
        if sync is not None or len(state.nodes) == 1:
            state = replace(state, is_sync=bool(sync))
        return state

    def _endpoints(self, state: State) -> Endpoints:
        found = nodes(self.layout, state)
        primary, *others = self._by_worth(state)
        return Endpoints.from_state(state, primary, [n for n in others if found[n].is_standby])

    def _by_worth(self, state: State) -> list[str]:
        """The nodes: the primary, those that follow it or are to be made, replaced ones."""
        found, primary = nodes(self.layout, state), self._primary(state)
        return sorted(found, key=lambda name: (name != primary, is_replaced(found[name])))

    def _primary(self, state: State) -> str:
        """The primary, or the node that would be made as one."""
        return primary_of(nodes(self.layout, state)) or next(iter(state.nodes))

    def _load_or_begin(self) -> State:
        state = State.load(self.layout.state)
        if state is None and node(self.layout, FIRST).is_made:
            raise ConfigError(
                str(self.layout.state),
                "",
                "missing, and the passwords of the data beside it with it; `toolkit reset` makes "
                "the servers anew, without their data",
            )
        if state is None:
            state = State()
            state.save(self.layout.state)
        return state

    def _postgres_program(self, state: State, account: Account) -> Path:
        """The ``postgres`` to run, checked against the data that is there."""
        remembered = Path(state.pg_bin) if state.pg_bin else None
        if (folder := self._pg_bin or remembered) is not None:
            program = system_postgres(folder.expanduser())
        else:
            program = postgres_wheel().usable_by(account, self.layout.binaries)
        version = postgres_version(program, account)
        data, data_version = self._data_version(state)
        if data_version not in (None, major(version)):
            raise ConfigError(
                "local servers",
                "pg_bin",
                f"the data in {data} was made by PostgreSQL {data_version} and "
                f"{program} is {version}; use --pg-bin with a PostgreSQL {data_version}, another "
                "--name, or `toolkit reset`, which deletes the data",
            )
        return program

    def _data_version(self, state: State | None) -> tuple[Path, str | None]:
        """Where data is, if any, and the major version that made it."""
        found = nodes(self.layout, state or State()).values()
        made = next((node for node in found if node.is_made), None)
        return (made.data, made.data_version()) if made else (self.layout.postgres, None)

    def _running_version(self, state: State | None) -> str | None:
        try:
            account = choose_account(self.layout.logs)
            if state is not None and state.pg_bin:
                return postgres_version(system_postgres(Path(state.pg_bin)), account)
            return postgres_version(
                postgres_wheel().usable_by(account, self.layout.binaries), account
            )
        except (ConfigError, Unavailable):  # the programs are gone; the server runs on
            return self._data_version(state)[1]

    # -- acting, under the lock ---------------------------------------------------------------

    @contextmanager
    def _starting(self) -> Iterator[Startup]:
        account = choose_account(self.layout.logs)
        self.layout.prepare(account)
        with self._lock():
            state = self._load_or_begin()
            program = self._postgres_program(state, account)
            run = Startup(self.layout, state, account, program, self._settings, self._say)
            if self._pg_bin is not None:
                run.keep(replace(state, pg_bin=str(self._pg_bin.expanduser().absolute())))
            yield run

    def _up_all(self, run: Startup, wished: State, rejoining: str | None = None) -> Endpoints:
        # first what may be missing: then nothing is started that would have to be stopped
        valkey_program = valkey_wheel().usable_by(run.account, self.layout.binaries)
        pooler = debian.pgbouncer(run.account, self.layout.binaries) if wished.is_pooled else None
        run.without([name for name in run.state.nodes if name not in wished.nodes])
        run.keep(wished)
        primary = run.primary()
        if rejoining is not None:
            run.rejoin(rejoining, primary)
        problems = run.standbys(primary)
        if pooler is not None:
            run.pgbouncer(pooler, primary)
        else:
            pgbouncer_of(self.layout).stop()
        run.valkey(valkey_program)
        if problems:
            raise Unavailable("\n".join(problems))
        return self._endpoints(run.state)

    def _stop(self, *, fast: bool) -> bool:
        # replicas before the primary, which would wait for one that is frozen
        found = sorted(
            (Postgres(data, self.layout.logs / "postgres.log") for data in self.layout.all_data()),
            key=lambda node: not node.is_standby,
        )
        stopped = [valkey_of(self.layout).stop(), pgbouncer_of(self.layout).stop()]
        stopped += [node.stop(fast=fast) for node in found]
        if any(stopped):
            self._say("stopped the local servers")
        return any(stopped)

    # -- small ----------------------------------------------------------------------------------

    def _lock(self) -> AbstractContextManager[None]:
        what = f"the local servers in {self.layout.home}"
        return lock.held(self.layout.lock, timeout_s=self._lock_timeout_s, what=what)

    def _say(self, text: str) -> None:
        log.info("%s", text)
        if self._on_progress is not None:
            self._on_progress(text)
