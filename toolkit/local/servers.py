"""`LocalServers`: a PostgreSQL and a Valkey that belong together, up or down as one."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path

from toolkit.errors import ConfigError, Unavailable
from toolkit.local import lock, ports, postgres, valkey
from toolkit.local.account import Account, choose_account
from toolkit.local.binaries import (
    major,
    postgres_version,
    postgres_wheel,
    system_postgres,
    valkey_wheel,
)
from toolkit.local.bootstrap import bootstrap
from toolkit.local.folders import discard
from toolkit.local.layout import DamagedState, Layout, State
from toolkit.local.probe import refusal
from toolkit.local.values import Endpoints, ServerStatus, Status

log = logging.getLogger(__name__)

_PORT_TRIES = 5
_ANSWER_S = 60.0
_POLL_S = 0.02


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
        self._postgres = postgres.Postgres(self.layout.postgres, self.layout.logs / "postgres.log")
        self._valkey = valkey.Valkey(self.layout.valkey, self.layout.logs / "valkey.log")

    def __repr__(self) -> str:
        return f"LocalServers({str(self.layout.root)!r}, name={self.layout.name!r})"

    def up(self) -> Endpoints:
        """Start what is not running, making it first where it was never made.

        Connects to servers that are up and changes nothing (some milliseconds, once psycopg is
        imported); a first start takes seconds. Servers that do not take connections yet, or are
        going down, are waited for, and started again where they went.
        """
        state = State.load(self.layout.state)
        if self._pg_bin is None and state is not None and self._is_ready(state):
            self._compare_settings(state)
            return Endpoints.from_state(state)
        account = choose_account(self.layout.postgres)
        self.layout.prepare(account)
        with self._lock():
            state = self._load_or_begin()
            program = self._postgres_program(state, account)
            if self._pg_bin is not None:
                state = self._keep(replace(state, pg_bin=str(self._pg_bin.expanduser().absolute())))
            valkey_program = valkey_wheel().usable_by(account, self.layout.binaries)
            state = self._up_postgres(state, program, account)
            state = self._up_valkey(state, valkey_program, account)
        return Endpoints.from_state(state)

    def down(self) -> bool:
        """Stop both servers, keeping the data; True if one was running."""
        if not self.layout.home.exists():
            return False
        with self._lock():
            return self._stop(fast=True)

    def reset(self) -> None:
        """Stop both servers and delete their data.

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
            for folder in (self.layout.postgres, self.layout.valkey, self.layout.logs):
                discard(folder)
            if state is not None:
                self._keep(replace(state, pg_bin=None))
        self._say("deleted the data")

    def endpoints(self) -> Endpoints:
        """The addresses, without starting anything; `Unavailable` if it was never up."""
        state = State.load(self.layout.state)
        if state is None or state.postgres_port is None or state.valkey_port is None:
            raise Unavailable(
                f"no local servers in {self.layout.home} yet; `toolkit up` makes them"
            )
        return Endpoints.from_state(state)

    def status(self) -> Status:
        """What runs, without starting or changing anything."""
        state = State.load(self.layout.state)
        running = self._postgres.running()
        valkey_pid = self._valkey.running()
        valkey_version = (
            valkey.version(state.valkey_port, state.valkey_password)
            if valkey_pid and state and state.valkey_port
            else None
        )
        return Status(
            self.layout.name,
            self.layout.root,
            ServerStatus(
                "PostgreSQL",
                running.pid if running else None,
                running.port if running else state.postgres_port if state else None,
                self._running_version(state) if running else None,
                state is not None and self._is_postgres_ready(state),
                self.layout.postgres,
                self._postgres.log,
            ),
            ServerStatus(
                "Valkey",
                valkey_pid,
                state.valkey_port if state else None,
                valkey_version,
                valkey_version is not None,
                self.layout.valkey,
                self._valkey.log,
            ),
        )

    # -- deciding ---------------------------------------------------------------------------

    def _is_ready(self, state: State) -> bool:
        return self._is_postgres_ready(state) and self._is_valkey_ready(state)

    def _is_postgres_ready(self, state: State) -> bool:
        running = self._postgres.running() if self._postgres.is_made else None
        return (
            running is not None
            and running.is_ready
            and running.port is not None
            and running.port == state.postgres_port
            # the pid file goes on saying ready while a crashed server recovers
            and refusal(running.port, state.toolkit_password) is None
        )

    def _is_valkey_ready(self, state: State) -> bool:
        return (
            state.valkey_port is not None
            and self._valkey.running() is not None
            and valkey.version(state.valkey_port, state.valkey_password) is not None
        )

    def _compare_settings(self, state: State) -> None:
        wanted = postgres.configuration(self._settings, state.postgres_port or 0)
        if self._settings and not self._postgres.has_configuration(wanted):
            log.warning("%r runs with other settings; `down` first to change them", self)

    def _load_or_begin(self) -> State:
        state = State.load(self.layout.state)
        if state is None and self._postgres.is_made:
            raise ConfigError(
                str(self.layout.state),
                "",
                "missing, and the passwords of the data beside it with it; `toolkit reset` makes "
                "the servers anew, without their data",
            )
        return state if state is not None else self._keep(State())

    def _postgres_program(self, state: State, account: Account) -> Path:
        """The ``postgres`` to run, checked against the data that is there."""
        remembered = Path(state.pg_bin) if state.pg_bin else None
        if (folder := self._pg_bin or remembered) is not None:
            program = system_postgres(folder.expanduser())
        else:
            program = postgres_wheel().usable_by(account, self.layout.binaries)
        version = postgres_version(program, account)
        data_version = self._postgres.data_version()
        if self._postgres.is_made and data_version not in (None, major(version)):
            raise ConfigError(
                "local servers",
                "pg_bin",
                f"the data in {self.layout.postgres} was made by PostgreSQL {data_version} and "
                f"{program} is {version}; use --pg-bin with a PostgreSQL {data_version}, another "
                "--name, or `toolkit reset`, which deletes the data",
            )
        return program

    def _running_version(self, state: State | None) -> str | None:
        try:
            account = choose_account(self.layout.postgres)
            if state is not None and state.pg_bin:
                return postgres_version(system_postgres(Path(state.pg_bin)), account)
            return postgres_version(
                postgres_wheel().usable_by(account, self.layout.binaries), account
            )
        except (ConfigError, Unavailable):  # the programs are gone; the server runs on
            return self._postgres.data_version()

    # -- acting, under the lock ---------------------------------------------------------------

    def _up_postgres(self, state: State, program: Path, account: Account) -> State:
        if self._is_postgres_ready(state):
            self._compare_settings(state)
            return state
        make = not self._postgres.is_made
        if make:
            self._say("making PostgreSQL's data folder (once)")
            sync = self._settings.get("fsync", "on") not in ("off", "false", "no", "0")
            self._postgres.make(program, account, state.admin_password, sync=sync)

        def start(port: int) -> None:
            text = postgres.configuration(self._settings, port)
            self._postgres.start(program, account, text)

        running = self._postgres.running()
        if running is not None and running.port not in (None, state.postgres_port):
            self._postgres.stop()
            running = None
        if running is not None and state.postgres_port is not None:
            start(state.postgres_port)  # somebody began to start it: wait for it
        else:
            state = self._start_on_port("PostgreSQL", state, start)
        if make:
            assert state.postgres_port is not None
            bootstrap(state.postgres_port, state.admin_password, state.toolkit_password)
            self._postgres.mark_made(account)
        return self._await_postgres(state, start)

    def _await_postgres(self, state: State, start: Callable[[int], None]) -> State:
        """Wait until PostgreSQL takes connections; one that ends meanwhile is started again."""
        deadline = time.monotonic() + _ANSWER_S
        while True:
            assert state.postgres_port is not None
            if (refused := refusal(state.postgres_port, state.toolkit_password)) is None:
                return state
            if not refused.passes:
                raise Unavailable(
                    f"PostgreSQL runs in {self.layout.postgres} and refuses the role toolkit: "
                    f"{refused.problem}; `toolkit reset` makes the servers anew, without their data"
                )
            if time.monotonic() > deadline:
                raise Unavailable(
                    f"PostgreSQL takes no connections after {_ANSWER_S:g} s: {refused.problem} "
                    f"(its log: {self._postgres.log})"
                )
            if self._postgres.running() is None:
                state = self._start_on_port("PostgreSQL", state, start)
            else:
                time.sleep(_POLL_S)

    def _up_valkey(self, state: State, program: Path, account: Account) -> State:
        if self._is_valkey_ready(state):
            return state
        self._valkey.stop()
        return self._start_on_port(
            "Valkey",
            state,
            lambda port: self._valkey.start(program, account, port, state.valkey_password),
        )

    def _start_on_port(self, server: str, state: State, start: Callable[[int], None]) -> State:
        """Start on the port kept from the last run, or on another if somebody took it."""
        for attempt in range(_PORT_TRIES):
            kept = state.port_of(server)
            if kept is None or not ports.is_free(kept):
                port = ports.choose()
                if kept is not None:
                    log.warning("port %d is taken; %s moves to %d", kept, server, port)
                    self._say(f"port {kept} is taken by another program: {server} moves to {port}")
                # saved first: if we die in between, the next run finds what it started
                state = self._keep(state.with_port(server, port))
            else:
                port = kept
            self._say(f"starting {server} on port {port}")
            try:
                start(port)
            except Unavailable:
                if ports.is_free(port) or attempt == _PORT_TRIES - 1:
                    raise
            else:
                return state
        raise AssertionError("unreachable")

    def _stop(self, *, fast: bool) -> bool:
        stopped = [self._valkey.stop(), self._postgres.stop(fast=fast)]
        if any(stopped):
            self._say("stopped the local servers")
        return any(stopped)

    # -- small ----------------------------------------------------------------------------------

    def _lock(self) -> AbstractContextManager[None]:
        what = f"the local servers in {self.layout.home}"
        return lock.held(self.layout.lock, timeout_s=self._lock_timeout_s, what=what)

    def _keep(self, state: State) -> State:
        state.save(self.layout.state)
        return state

    def _say(self, text: str) -> None:
        log.info("%s", text)
        if self._on_progress is not None:
            self._on_progress(text)
