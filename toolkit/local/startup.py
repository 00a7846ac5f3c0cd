"""One run of `LocalServers.up`, under the lock: what is not there is made, what is down started."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from toolkit.errors import Unavailable
from toolkit.local import pgbouncer, ports, postgres, replication
from toolkit.local.account import Account
from toolkit.local.administration import ROLE, Administrator
from toolkit.local.debian import Program
from toolkit.local.folders import discard
from toolkit.local.journal import tail
from toolkit.local.layout import Layout
from toolkit.local.postgres import Postgres
from toolkit.local.probe import refusal
from toolkit.local.replication import is_replaced, node, nodes, primary_of, told
from toolkit.local.state import PGBOUNCER, VALKEY, State
from toolkit.local.status import (
    is_pgbouncer_ready,
    is_ready,
    is_valkey_ready,
    pgbouncer_of,
    pgbouncer_text,
    valkey_of,
)

log = logging.getLogger(__name__)

_PORT_TRIES = 5
_ANSWER_S = 60.0
_STREAM_S = 10.0
_RESTARTS = 3
_POLL_S = 0.02


@dataclass(slots=True)
class Startup:
    """The servers of an instance on their way up; ``state`` moves on, saved at every step."""

    layout: Layout
    state: State
    account: Account
    program: Path
    settings: Mapping[str, str]
    say: Callable[[str], None]

    @property
    def nodes(self) -> dict[str, Postgres]:
        """All PostgreSQL servers by their names."""
        return nodes(self.layout, self.state)

    def node(self, name: str) -> Postgres:
        """A PostgreSQL server by its name."""
        return node(self.layout, name)

    def keep(self, state: State) -> None:
        """Go on with another state."""
        if state != self.state:
            state.save(self.layout.state)
            self.state = state

    # -- PostgreSQL -----------------------------------------------------------------------------

    def primary(self) -> str:
        """Start the primary, whichever node that is by now, and return its name."""
        name = primary_of(self.nodes)
        if name is None:
            if standbys := [name for name, node in self.nodes.items() if node.is_made]:
                raise Unavailable(
                    f"no node is a primary ({', '.join(standbys)}: replica); promote one with "
                    f"pg_ctl promote --pgdata {self.layout.data(standbys[0])} once it runs, or "
                    "`toolkit reset`, which deletes the data"
                )
            name = next(iter(self.state.nodes))
            self._make(name)
        node = self.node(name)
        if self._is_ready(name):
            compare_settings(node, self.settings)
        else:
            self._start_node(name, lambda port: postgres.configuration(self.settings, port))
        if len(self.state.nodes) > 1 and not node.can_replicate:
            self.say("restarting PostgreSQL: it was started before there were replicas")
            node.stop()
            self._start_node(name, lambda port: postgres.configuration(self.settings, port))
        return name

    def _make(self, name: str) -> None:
        node = self.node(name)
        self.say("making PostgreSQL's data folder (once)")
        sync = self.settings.get("fsync", "on") not in ("off", "false", "no", "0")
        node.make(self.program, self.account, self.state.admin_password, sync=sync)

        def start(port: int) -> None:
            node.start(self.program, self.account, postgres.configuration(self.settings, port))

        self._start_on_port(name, start)
        self._administrator(name).bootstrap(self.state.toolkit_password)
        node.mark_made(self.account)

    def standbys(self, primary: str) -> list[str]:
        """Make and start all that follow ``primary``; what is wrong with those that do not start.

        Everyone is told about everyone.
        """
        others = [name for name in self.state.nodes if name != primary]
        standbys = [name for name in others if not is_replaced(self.node(name))]
        for name in [name for name in others if name not in standbys]:
            self.say(f"{name} was replaced by {primary} and is left as it is; {_way_out(name)}")
            log.warning("%s was replaced by %s", name, primary)
        if not self.node(primary).can_replicate:
            return []
        self._admit(primary, standbys)
        problems = []
        for name in standbys:
            try:
                if not self._up_standby(name, primary):
                    self.say(f"{name} does not follow {primary}; {_way_out(name)}")
                    log.warning("%s does not follow %s", name, primary)
            except Unavailable as error:
                problems.append(f"{name} does not follow {primary}; {_way_out(name)}: {error}")
        # last: a commit would wait for standbys that are still being made
        self.node(primary).set_replication(self.account, told(self.layout, self.state, primary))
        return problems

    def _admit(self, primary: str, standbys: Sequence[str]) -> None:
        """Let others follow ``primary``."""
        password = self.state.replication_password
        self._administrator(primary).settle_replication(password, standbys)
        if standbys:
            self.account.write(self.layout.passfile, replication.passfile_text(password))

    def _up_standby(self, name: str, primary: str) -> bool:
        """Start a standby, made from the primary if need be; False if it does not follow it."""
        node = self.node(name)
        if not node.is_made:
            self.say(f"copying {primary} to {name}")
            source, slot = self._conninfo(name, primary), replication.slot_of(name)
            replication.copy(node, self.program, self.account, source, slot)
        node.set_replication(self.account, told(self.layout, self.state, name))
        if not self._is_ready(name):
            # as its primary is: with fewer connections, say, it would not start
            text = self.node(primary).configured() or ""
            self._start_node(name, lambda port: postgres.on_port(text, port))
        self._administrator(name).drop_slots()
        return self._streams(name, primary)

    def _streams(self, name: str, primary: str) -> bool:
        timeline, node = self.node(primary).timeline, self.node(name)
        deadline = time.monotonic() + _STREAM_S
        while not (
            name in self._administrator(primary).followers()
            and self._administrator(name).receives()[0] == timeline
        ):
            if node.running() is None:
                raise Unavailable(f"PostgreSQL has ended in {node.data}:\n{tail(node.log)}")
            if time.monotonic() > deadline:
                return False
            time.sleep(_POLL_S)
        return True

    def _conninfo(self, name: str, primary: str) -> str:
        port = self.state.port_of(primary)
        assert port is not None
        return replication.conninfo(port, self.layout.passfile, name)

    def rejoin(self, name: str, primary: str) -> None:
        """Make ``name`` follow ``primary``: what only it has is lost."""
        node = self.node(name)
        node.stop()
        self._admit(primary, [n for n in self.state.nodes if n == name or self.node(n).is_standby])
        # pg_rewind reads the newest timeline from the control file, which lags behind
        self._administrator(primary).checkpoint()
        if node.is_made:
            self.say(f"rewinding {name} to where it and {primary} parted")
            source = self._conninfo(name, primary)
            if replication.rewind(node, self.program, self.account, source):
                with suppress(Unavailable):
                    if self._up_standby(name, primary):
                        return
            # what it would have to read next may be gone from the primary
            self.say(f"{name} cannot be rewound")
            node.stop(fast=False)
            discard(node.data)
        self._up_standby(name, primary)

    def without(self, names: list[str]) -> None:
        """Delete nodes; the others are told by `standbys`."""
        for name in names:
            self.say(f"removing {name}")
            self.node(name).stop(fast=False)
            discard(self.layout.data(name))

    def _administrator(self, name: str) -> Administrator:
        """The superuser on a node."""
        port = self.state.port_of(name)
        assert port is not None
        return Administrator(port, self.state.admin_password)

    def _is_ready(self, name: str) -> bool:
        return is_ready(self.node(name), self.state, name)

    def _start_node(self, name: str, text_for: Callable[[int], str]) -> None:
        """Start a node and wait until it takes connections; one that ends is started again."""
        node = self.node(name)

        def start(port: int) -> None:
            node.start(self.program, self.account, text_for(port))

        running = node.running()
        if running is not None and running.port not in (None, self.state.port_of(name)):
            node.stop()
            running = None
        port = self.state.port_of(name)
        if running is not None and port is not None:
            start(port)  # somebody began to start it: wait for it
        else:
            self._start_on_port(name, start)
        deadline, restarts = time.monotonic() + _ANSWER_S, 0
        while True:
            port = self.state.port_of(name)
            assert port is not None
            if (refused := refusal(port, self.state.toolkit_password)) is None:
                return
            if not refused.passes:
                raise Unavailable(
                    f"PostgreSQL runs in {node.data} and refuses the role toolkit: "
                    f"{refused.problem}; `toolkit reset` makes the servers anew, without their data"
                )
            if time.monotonic() > deadline:
                raise Unavailable(
                    f"PostgreSQL takes no connections after {_ANSWER_S:g} s: {refused.problem} "
                    f"(its log: {node.log})"
                )
            if node.running() is not None:
                time.sleep(_POLL_S)
            elif restarts < _RESTARTS:
                restarts += 1
                self._start_on_port(name, start)
            else:
                raise Unavailable(f"PostgreSQL starts in {node.data} and ends:\n{tail(node.log)}")

    # -- the others -----------------------------------------------------------------------------

    def pgbouncer(self, program: Program, primary: str) -> None:
        """Start PgBouncer, or tell the one that runs where the servers are now."""
        bouncer = pgbouncer_of(self.layout)
        secrets = self._administrator(primary).secrets([ROLE])
        users = pgbouncer.userlist({pgbouncer.ADMIN: self.state.pgbouncer_password, **secrets})

        def text(port: int) -> str:
            return pgbouncer_text(self.layout, self.state.with_port(PGBOUNCER, port), primary)

        def start(port: int) -> None:
            bouncer.configure(self.account, text(port), users)
            bouncer.start(program, self.account, port, self.state.pgbouncer_password)

        port = self.state.pgbouncer_port
        if port is not None and is_pgbouncer_ready(bouncer, self.state):
            if not bouncer.has_configuration(text(port), users):
                bouncer.configure(self.account, text(port), users)
        else:
            bouncer.stop()
            self._start_on_port(PGBOUNCER, start)

    def valkey(self, program: Path) -> None:
        """Start Valkey, unless it runs."""
        server = valkey_of(self.layout)
        if is_valkey_ready(server, self.state):
            return
        server.stop()
        password = self.state.valkey_password
        self._start_on_port(
            VALKEY, lambda port: server.start(program, self.account, port, password)
        )

    def _start_on_port(self, server: str, start: Callable[[int], None]) -> None:
        """Start on the port kept from the last run, or on another if somebody took it."""
        for attempt in range(_PORT_TRIES):
            kept = self.state.port_of(server)
            title = f"PostgreSQL {server}" if server in self.state.nodes else server
            if kept is None or not ports.is_free(kept):
                port = ports.choose()
                if kept is not None:
                    log.warning("port %d is taken; %s moves to %d", kept, title, port)
                    self.say(f"port {kept} is taken by another program: {title} moves to {port}")
                # saved first: if we die in between, the next run finds what it started
                self.keep(self.state.with_port(server, port))
            else:
                port = kept
            self.say(f"starting {title} on port {port}")
            try:
                start(port)
            except Unavailable:
                if ports.is_free(port) or attempt == _PORT_TRIES - 1:
                    raise
            else:
                return
        raise AssertionError("unreachable")


def compare_settings(node: Postgres, settings: Mapping[str, str]) -> None:
    """Say so if a server that runs has other settings than it would be started with."""
    text = postgres.configuration(settings, 0)
    if settings and postgres.on_port(node.configured() or "", 0) != text:
        log.warning(
            "PostgreSQL in %s runs with other settings; `down` first to change them", node.data
        )


def _way_out(name: str) -> str:
    return f"`toolkit up --rejoin {name}` mends it, without what only {name} has"
