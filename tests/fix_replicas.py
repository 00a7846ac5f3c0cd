"""A primary with replicas of a test's own, to kill, freeze, promote and demote.

    def test_it(cluster: MakeCluster) -> None:
        servers = cluster(replicas=2, sync=True)
        servers.kill("pg1")
        servers.promote("pg2")

The nodes are called pg1, pg2, …; pg1 begins as the primary. All are migrated.
"""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Protocol
from urllib.parse import urlsplit

import psycopg
import pytest
from fix_servers import SETTINGS, WHEEL, log_in_quickly, system_bin
from psycopg import sql

from toolkit.local import Endpoints, LocalServers
from toolkit.local.account import choose_account
from toolkit.local.administration import Administrator
from toolkit.local.binaries import postgres_wheel, system_postgres
from toolkit.local.layout import Layout
from toolkit.local.postgres import Postgres
from toolkit.local.process import run
from toolkit.local.replication import node, primary_settings, standby_settings
from toolkit.local.state import State
from toolkit.migrate import upgrade

# a commit is in the log that replicas read once it is acknowledged; and pg_rewind needs whole pages
REPLICATED = SETTINGS | {"synchronous_commit": "on", "full_page_writes": "on"}
_numbers = count(1)
_PATIENCE_S = 30.0


def until(is_so: Callable[[], bool], what: str, patience_s: float = _PATIENCE_S) -> None:
    """Wait for something that comes by itself."""
    deadline = time.monotonic() + patience_s
    while not is_so():
        assert time.monotonic() < deadline, f"not within {patience_s:g} s: {what}"
        time.sleep(0.005)


def family(pid: int) -> list[int]:
    """A process and its children; a backend is in a process group of its own."""
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except (FileNotFoundError, ProcessLookupError):
        return [pid]
    return [pid, *map(int, children)]


def signal_all(pids: list[int], number: signal.Signals) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, number)


def is_stopped(pid: int) -> bool:
    """Whether a process is frozen, or gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "TZX"
    except (FileNotFoundError, ProcessLookupError):
        return True


class Cluster:
    """Running servers; what is done to them is done when the method returns."""

    def __init__(self, local: LocalServers, endpoints: Endpoints) -> None:
        self.local = local
        self.endpoints = endpoints
        self.layout = local.layout
        state = State.load(local.layout.state)
        assert state is not None
        self.state = state
        self.nodes = tuple(state.nodes)
        self.account = choose_account(local.layout.logs)
        self._frozen: dict[str, list[int]] = {}

    # -- where they are -------------------------------------------------------------------------

    def dsn(self, name: str) -> str:
        """A node's address for the role toolkit."""
        return self._on(self.endpoints.dsn, name)

    def admin_dsn(self, name: str) -> str:
        """A node's address for the superuser, in the database postgres."""
        return self._on(self.endpoints.admin_dsn, name)

    def _on(self, dsn: str, name: str) -> str:
        parts = urlsplit(dsn)
        login = parts.netloc.rpartition("@")[0]
        return parts._replace(netloc=f"{login}@127.0.0.1:{self.state.nodes[name]}").geturl()

    def postgres(self, name: str) -> Postgres:
        return node(self.layout, name)

    def pid(self, name: str) -> int:
        """The postmaster's."""
        running = self.postgres(name).running()
        assert running is not None, f"{name} does not run"
        return running.pid

    @contextmanager
    def admin(self, name: str, database: str = "postgres") -> Iterator[psycopg.Connection]:
        """A connection of the superuser; what it commits waits for no standby."""
        dsn = urlsplit(self.admin_dsn(name))._replace(path=f"/{database}").geturl()
        options = "-c synchronous_commit=local"
        with psycopg.connect(dsn, autocommit=True, options=options) as connection:
            yield connection

    def ask(self, name: str, statement: str) -> object:
        """The one value that a statement returns, as the superuser."""
        with self.admin(name) as connection:
            row = connection.execute(statement.encode()).fetchone()
        assert row is not None
        return row[0]

    def hide_receiver(self) -> None:
        """Let the role toolkit not see what timeline a replica receives; all nodes hear of it."""
        with self.admin(self.primary()) as connection:
            connection.execute("REVOKE pg_read_all_stats FROM toolkit")
        self.wait_replayed()

    # -- what happens to processes --------------------------------------------------------------

    def kill(self, name: str) -> None:
        """SIGKILL to the server and all its backends."""
        pids = family(self.pid(name))
        signal_all(pids[:1], signal.SIGSTOP)  # it makes no more of them
        pids = family(pids[0])
        signal_all(pids, signal.SIGKILL)
        self._frozen.pop(name, None)
        until(lambda: all(is_stopped(pid) for pid in pids), f"{name} is dead")

    def freeze(self, name: str) -> None:
        """SIGSTOP to the server and all its backends: the kernel still takes connections."""
        pid = self.pid(name)
        signal_all([pid], signal.SIGSTOP)
        until(lambda: is_stopped(pid), f"{name} is frozen")
        self._frozen[name] = family(pid)
        signal_all(self._frozen[name], signal.SIGSTOP)
        until(lambda: all(map(is_stopped, self._frozen[name])), f"{name} is frozen")

    def thaw(self, name: str) -> None:
        """SIGCONT to all that was frozen; nothing where nothing was."""
        signal_all(self._frozen.pop(name, []), signal.SIGCONT)

    def stop(self, name: str) -> None:
        """Shut it down in an orderly way, whoever is connected."""
        self.thaw(name)
        self.postgres(name).stop()

    def start(self, name: str) -> None:
        """Start it in the role that it has; nothing if it runs."""
        server = self.postgres(name)
        server.start(self._program(), self.account, server.configured() or "")

    def restart(self, name: str) -> None:
        """Stop it if it runs, and start it."""
        self.stop(name)
        self.start(name)

    # -- what happens to roles ------------------------------------------------------------------

    def promote(self, name: str, *, follow: bool = True) -> None:
        """Make a replica the primary; with ``follow`` the other replicas follow it.

        Commits on it wait for nobody: `sync` says otherwise. A replica that received more than
        this one cannot follow it, and an acknowledged commit may be lost: see `foremost`.
        """
        self.postgres(name).set_replication(self.account, "")
        assert self.ask(name, "SELECT pg_promote(true, 30)") is True
        self._admit(name)
        if follow:
            for other in self._others(name):
                if self.postgres(other).is_standby:
                    self.follow(other, name)

    def foremost(self) -> str:
        """The replica that received most: the one to promote when the primary is gone."""
        receives = "SELECT pg_wal_lsn_diff(pg_last_wal_receive_lsn(), '0/0')"
        standbys = [name for name in self.nodes if self.postgres(name).is_standby]
        return max(standbys, key=lambda name: str(self.ask(name, receives)).zfill(20))

    def follow(self, name: str, primary: str) -> None:
        """Let a replica follow another; one that runs turns to it at once."""
        port = self.state.nodes[primary]
        assert port is not None
        text = standby_settings(port, self.layout.passfile, name)
        self.postgres(name).set_replication(self.account, text)

    def demote(self, name: str, primary: str) -> None:
        """Stop an old primary and start it, rewound, as a standby of the new one."""
        self.thaw(name)
        self.local.rejoin(name)
        assert self.local.endpoints().primary == primary
        self._admit(primary)

    def sync(self, primary: str, *names: str) -> None:
        """Let commits on the primary wait for one of these; for nobody if none is named."""
        self.postgres(primary).set_replication(self.account, primary_settings(names))
        wanted = f"ANY 1 ({', '.join(names)})" if names else ""
        shown = "SELECT current_setting('synchronous_standby_names')"
        until(lambda: self.ask(primary, shown) == wanted, f"{primary} waits for {names}")

    def _admit(self, primary: str) -> None:
        port = self.state.nodes[primary]
        assert port is not None
        administrator = Administrator(port, self.state.admin_password)
        administrator.settle_replication(self.state.replication_password, self._others(primary))

    def _others(self, name: str) -> list[str]:
        return [other for other in self.nodes if other != name]

    # -- what happens to streams ----------------------------------------------------------------

    def pause_replay(self, name: str) -> None:
        """It goes on receiving and does not show it."""
        self.ask(name, "SELECT pg_wal_replay_pause()::text")
        state = "SELECT pg_get_wal_replay_pause_state()"
        until(lambda: self.ask(name, state) == "paused", f"{name} has paused")

    def resume_replay(self, name: str) -> None:
        self.ask(name, "SELECT pg_wal_replay_resume()::text")

    def slow_replay(self, name: str, delay: str | None) -> None:
        """Apply each commit so much later, such as "200ms"; None for at once."""
        self._set(name, "recovery_min_apply_delay", delay)

    def cut_receiver(self, name: str) -> None:
        """It receives nothing more, as if the network were gone; `mend_receiver` ends that."""
        self._set(name, "primary_conninfo", "host=127.0.0.1 port=1 connect_timeout=1")
        gone = "SELECT NOT EXISTS (SELECT FROM pg_stat_wal_receiver)"
        until(lambda: self.ask(name, gone) is True, f"{name} receives nothing")

    def mend_receiver(self, name: str) -> None:
        self._set(name, "primary_conninfo", None)

    def _set(self, name: str, setting: str, value: str | None) -> None:
        to = sql.SQL("SET {} = {}" if value is not None else "RESET {}")
        parts: list[sql.Composable] = [sql.Identifier(setting)]
        if value is not None:
            parts.append(sql.Literal(value))
        with self.admin(name) as connection:
            connection.execute(sql.SQL("ALTER SYSTEM ") + to.format(*parts))
            connection.execute("SELECT pg_reload_conf()")

    def wait_streaming(self, *names: str) -> None:
        """Wait until these replicas (all, if none is named) stream from the primary."""
        primary = self.primary()
        for name in names or self._others(primary):
            streams = (
                "SELECT EXISTS (SELECT FROM pg_stat_replication "
                f"WHERE application_name = '{name}' AND state = 'streaming')"
            )
            until(lambda: self.ask(primary, streams) is True, f"{name} streams from {primary}")  # noqa: B023

    def wait_replayed(self, *names: str) -> None:
        """Wait until these replicas (all, if none is named) show what the primary has now."""
        primary = self.primary()
        # the flushed one: what is only inserted may stay in memory for long
        lsn = self.ask(primary, "SELECT pg_current_wal_flush_lsn()::text")
        for name in names or self._others(primary):
            replayed = f"SELECT pg_last_wal_replay_lsn() >= '{lsn}'"
            until(lambda: self.ask(name, replayed) is True, f"{name} replayed {lsn}")  # noqa: B023

    def primary(self) -> str:
        """The node that is the primary now; of two the one with the newer timeline."""
        return self.local.endpoints().primary

    # -- the end --------------------------------------------------------------------------------

    def close(self) -> None:
        for name in self.nodes:
            self.thaw(name)
        self.local.reset()
        shutil.rmtree(self.layout.home)

    def _program(self) -> Path:
        if self.state.pg_bin:
            return system_postgres(Path(self.state.pg_bin))
        return postgres_wheel().usable_by(self.account, self.layout.binaries)


class MakeCluster(Protocol):
    """Starts a cluster; ``settings`` are PostgreSQL's own, over those of all tests."""

    def __call__(
        self,
        replicas: int = 1,
        *,
        sync: bool = False,
        pgbouncer: bool = False,
        settings: Mapping[str, str] | None = None,
        version: str | None = None,
    ) -> Cluster: ...


class Bases:
    """A migrated instance for each version, made once and stopped, to be copied."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._made: dict[str, LocalServers] = {}

    def base(self, version: str) -> LocalServers:
        if version not in self._made:
            pg_bin = None if version == WHEEL else system_bin(version)
            local = LocalServers(
                self._folder, name=f"base{version}", pg_bin=pg_bin, settings=REPLICATED
            )
            endpoints = local.up()
            upgrade(endpoints.dsn)
            log_in_quickly(endpoints)
            local.down()
            self._made[version] = local
        return self._made[version]

    def copy(self, version: str, replicas: int, name: str) -> None:
        """Lay out a stopped instance: a replica's folder begins as its primary's."""
        base = self.base(version)
        layout = Layout(self._folder, name)
        account = choose_account(base.layout.logs)
        layout.prepare(account)
        kept = State.load(base.layout.state)
        assert kept is not None
        fresh = State().replication_password
        state = replace(kept, nodes={"pg1": None}, valkey_port=None, replication_password=fresh)
        state = state.with_nodes(replicas + 1, ["pg1"])
        for of in state.nodes:
            target = layout.data(of)
            copied = run(["/bin/cp", "-a", base.layout.postgres, layout.logs / "copy"], account)
            assert copied.code == 0, copied.text
            (layout.logs / "copy").rename(target)
            if of != "pg1":
                node(layout, of).make_standby(account)
        state.save(layout.state)


@pytest.fixture(scope="session")
def bases(run_folder: Path) -> Bases:
    """The run's folders to copy clusters from."""
    return Bases(run_folder)


@pytest.fixture
def cluster(bases: Bases, run_folder: Path, server_version: str) -> Iterator[MakeCluster]:
    """Make clusters on the server version under test; all end with the test."""
    made: list[Cluster] = []

    def make(
        replicas: int = 1,
        *,
        sync: bool = False,
        pgbouncer: bool = False,
        settings: Mapping[str, str] | None = None,
        version: str | None = None,
    ) -> Cluster:
        name = f"cluster{next(_numbers)}"
        bases.copy(version or server_version, replicas, name)
        local = LocalServers(run_folder, name=name, settings=REPLICATED | dict(settings or {}))
        made.append(Cluster(local, local.up(pgbouncer=pgbouncer, sync=sync)))
        return made[-1]

    yield make
    for cluster in made:
        cluster.close()
