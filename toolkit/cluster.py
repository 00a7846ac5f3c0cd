"""The nodes of a shard at work: which of them a read may use, and which takes the writes."""

from __future__ import annotations

import logging
import os
import time
import weakref
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from threading import Lock
from typing import Any, TypeVar

from toolkit.drivers import Driver, NodeDriver
from toolkit.drivers.failures import DENIED
from toolkit.drivers.prober import Prober
from toolkit.errors import (
    AccessDenied,
    ConfigError,
    DatabaseError,
    NoConnection,
    NoPrimary,
    ReadOnlyDatabase,
    SchemaError,
    ToolkitError,
    Unavailable,
)
from toolkit.options import PoolOptions
from toolkit.statements import compose
from toolkit.topologies import RoutingOptions
from toolkit_routing import (
    Change,
    Chooser,
    Ejection,
    Health,
    Node,
    Position,
    Role,
    Route,
    Sample,
    Shard,
    Want,
    route,
    settled,
)

T = TypeVar("T")
_log = logging.getLogger("toolkit.cluster")
_TURN = 0.01  # seconds between looks for a node that would do
_CATCH_UP = (0.0, 0.0005, 0.001, 0.002)  # pauses before a replica is asked again how far it is
_CONFLICTS = ("40001", "40P01")  # a replica's replay has cancelled the statement
_LATE = 2  # intervals without a look, after which one is waited for


class Cluster:
    """The nodes of one shard, each behind a driver of its own; safe to share as those are."""

    def __init__(
        self,
        shard: Shard,
        drivers: Mapping[str, NodeDriver],
        pool: PoolOptions,
        options: RoutingOptions,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.shard = shard
        self.drivers = drivers
        self.options = options
        self.health = Health([node.name for node in shard.nodes], options.patience)
        self.loads = {n.name: drivers[n.name].load for n in shard.nodes}
        for node in shard.nodes:
            load = self.loads[node.name]
            load.weight, load.region = node.weight, node.region
        self._is_checked = False
        self._listeners: list[Callable[[str], None]] = []
        self._chooser = Chooser(
            options.small,
            options.bulk,
            options.analysis,
            options.region,
            pool.max_size,
            options.reads_primary,
        )
        self._ejection = Ejection(most=options.ejected)
        self._clock = clock
        self.lock = Lock()
        self._looked_at = float("-inf")
        self._prober = Prober(
            shard.nodes, self, pool, interval=options.interval, deadline=options.deadline
        )
        _clusters.add(self)

    def forked(self) -> None:
        """In a forked child: whoever held our locks, or had calls on their way, is not here."""
        self.lock = Lock()
        for load in self.loads.values():
            load.inflight = 0
        self._prober.forked()

    # -- what is heard of the nodes ------------------------------------------------------------

    def saw(self, name: str, sample: Sample) -> None:
        """Hear from the prober what a node is."""
        with self.lock:
            self._looked_at = self._clock()
            change = self.health.saw(name, sample)
        self._changed(change)

    def silent(self, name: str, asked_at: float, why: str) -> None:
        """Hear from the prober that a node which it asked then has not answered."""
        with self.lock:
            change = self.health.silent(name, asked_at, self._clock(), why)
        self._changed(change)

    def full(self, name: str, asked_at: float, why: str) -> None:
        """Hear from the prober that a node has no connection left for it."""
        with self.lock:
            change = self.health.full(name, asked_at, self._clock(), why)
            self._looked_at = self._clock()
        self._changed(change)

    def refused(self, name: str, why: str) -> None:
        """Hear that a node cannot be connected to."""
        with self.lock:
            change = self.health.refused(name, self._clock(), why)
        self._changed(change)

    def is_stuck(self, name: str) -> bool:
        """Tell the prober that calls to a node do not come back."""
        return self.loads[name].is_stuck(self._clock(), self.options.patience)

    def failed(self, name: str, error: ToolkitError, began: float) -> bool:
        """Hear what a call that began then met with; return whether another node may do better.

        The error may be about another node than the one that was asked: the primary, which knows
        what has changed.
        """
        name = error.node if isinstance(error, Unavailable) and error.node in self.loads else name
        if isinstance(error, ReadOnlyDatabase):
            with self.lock:
                change = self.health.read_only(name, began)
        elif isinstance(error, NoConnection) or (
            isinstance(error, DatabaseError) and error.sqlstate in _CONFLICTS
        ):
            with self.lock:
                self._ejection.failed(self.loads[name], self.loads, self._clock())
            return True
        elif isinstance(error, Unavailable):
            with self.lock:
                change = self.health.refused(name, self._clock(), str(error), began)
        else:  # its schema may lie behind
            return isinstance(error, SchemaError) and self.health.primary is not None
        self._prober.hurry(name)
        self._changed(change)
        return True

    def listen(self, listener: Callable[[str], None]) -> None:
        """Call this with the name of a node whose connections lead nowhere, in any thread."""
        self._listeners.append(listener)

    def _changed(self, change: Change) -> None:
        if change.says:
            _log.info("shard %s: %s", self.shard.name, change.says)
        for name in change.cut:
            self.drivers[name].cut()
            for listener in self._listeners:
                listener(name)
        if change.cut:
            self._prober.hurry()

    # -- choosing ------------------------------------------------------------------------------

    async def ready(self) -> None:
        """Return when the nodes have been looked at lately; the first time, when all have been.

        Raises ConfigError, until the first time that it does not, where one cannot be what the
        topology says it is.
        """
        self._prober.touch()
        if self._is_checked and self._clock() - self._looked_at < self._late:
            return
        await self.heard(of_all=not self._is_checked)
        if not self._is_checked:
            self.check()
            self._is_checked = True
            for name, node in self.health.nodes.items():
                if not node.is_up:
                    _log.warning("shard %s begins without %s: %s", self.shard.name, name, node.why)

    @property
    def _late(self) -> float:
        return _LATE * self.options.interval + self.options.deadline

    async def heard(self, *, of_all: bool) -> None:
        """Return when there is news of some node, or of every one; or none answers."""
        nodes = self.health.nodes.values()
        until = self._clock() + self.options.deadline + self.options.wait
        while (now := self._clock()) < until and not all(n.failures for n in nodes):
            self._prober.touch()
            if now - self._looked_at < self._late and (
                not of_all or all(n.is_known for n in nodes)
            ):
                return
            await self.home.pause(_TURN / 2)

    async def read(
        self,
        want: Want,
        ask: Callable[[str], Coroutine[Any, Any, T]],
        timeout: float | None,
    ) -> tuple[T, Route]:
        """Run ``ask`` with the name of a node that has what is wanted; elsewhere if it fails there.

        Raises what the last node met with, or Unavailable where none will do in time.
        """
        await self.ready()
        tried: set[str] = set()
        last: ToolkitError | None = None
        wait = min(self.options.wait, timeout or self.options.wait)
        until = self._clock() + wait
        while True:
            began = self._clock()
            chosen = route(self.health, self.loads, self._chooser, want, began, tried)
            if chosen is None:
                if isinstance(last, SchemaError):
                    raise last
                if began >= until:
                    is_lost = last is None or type(last) in (Unavailable, NoPrimary)
                    raise self._nobody(want, wait) if is_lost or last is None else last
                self._prober.touch()
                await self.home.pause(_TURN)
                tried.clear()
                continue
            name = chosen.name
            if chosen.confirm is not None:
                pauses = _CATCH_UP if not tried else _CATCH_UP[:1]  # who waited once waits no more
                if not await self.reach(name, chosen.confirm, pauses):
                    tried.add(name)
                    continue
            try:
                found = await ask(name)
                self.loads[name].answered += 1
                return found, chosen
            except (Unavailable, DatabaseError, SchemaError) as error:
                if not self.failed(name, error, began):
                    raise
                last = error
                tried.add(name)
                self.loads[name].left += 1
                _log.info("a read moves on from %s: %s", name, error)

    async def reached(self, name: str, position: tuple[int, int] | None) -> bool:
        """Return whether a node has come to a timeline and LSN; None: to where the primary is."""
        if self.health.nodes[name].role is Role.PRIMARY:
            return True
        primary = self.health.primary
        if primary is not None and primary.is_untold:
            return False
        if position is None:
            now = await self.position(0.0)
            position = (now.timeline, now.lsn)
        return position[0] == self.health.timeline and await self.reach(name, position[1])

    async def reach(self, name: str, lsn: int, pauses: Sequence[float] = _CATCH_UP) -> bool:
        """Return whether a node has replayed up to somewhere, or does so in some milliseconds."""
        node, began = self.health.nodes[name], self._clock()
        if node.role is Role.PRIMARY or node.replayed >= lsn:
            return True
        driver = self.drivers[name]
        try:
            for pause in pauses:
                if pause:
                    await driver.pause(pause)
                (is_replica, found), *_ = await driver.fetch(
                    compose("routing/look_at_replica"), timeout=self.options.deadline
                )
                if not is_replica or found is None:
                    return False
                with self.lock:
                    self.health.replayed(name, int(found))
                if node.replayed >= lsn:
                    return True
        except (Unavailable, DatabaseError) as error:
            self.failed(name, error, began)
        return False

    async def primary(self, wait: float | None = None, *, writes: bool = False) -> str:
        """Return the primary's name; there being none is waited out so long, or as options say.

        ``writes``: one that takes no writes at the moment is none.
        """
        await self.ready()
        wait = self.options.wait if wait is None else wait
        until = self._clock() + wait
        while True:
            found = self.health.primary
            if found is not None and not (writes and found.is_read_only):
                return found.name
            if self._clock() >= until:
                raise self._nobody(Want(is_primary=True), wait)
            self._prober.touch()
            await self.home.pause(_TURN)

    @property
    def writer(self) -> str:
        """The name of the node that takes the writes, as far as is known; else empty."""
        return self.health.primary.name if self.health.primary is not None else ""

    def _nobody(self, want: Want, wait: float) -> ToolkitError:
        """Say why no node will do."""
        nodes = self.health.nodes
        said = "; ".join(f"{name}: {self._about(name)}" for name in nodes)
        what = "no primary that takes writes" if want.is_primary else "no node that is fresh enough"
        if not want.is_primary and not any(node.is_up for node in nodes.values()):
            what = "no node answers"
        is_denied = all(DENIED in node.why for node in nodes.values())
        error = AccessDenied if is_denied else NoPrimary if want.is_primary else Unavailable
        return error(f"shard {self.shard.name!r}: {what} within {wait:g} s ({said})")

    def _about(self, name: str) -> str:
        node, lag = self.health.nodes[name], self.health.lag(name, self._clock())
        if node.why:
            return node.why
        if node.role is Role.PRIMARY:
            return "the primary, but default_transaction_read_only is on"
        behind = f"{lag.bytes:,} bytes behind" if lag.bytes is not None else "its lag unknown"
        return f"a {node.role.value}, {behind}"

    async def position(self, wait: float | None = None) -> Position:
        """Ask the primary where its log is: behind everything committed before."""
        name = await self.primary(wait)
        began = self._clock()
        try:
            return await position_of(self.drivers[name])
        except (Unavailable, ReadOnlyDatabase) as error:
            self.failed(name, error, began)
            raise

    @property
    def home(self) -> Driver:
        """The door for all that needs no server: waiting, computing, running at the same time."""
        return self.drivers[self.shard.primary.name]

    def check(self) -> None:
        """Raise ConfigError for a node that cannot be what the topology says it is."""
        for where, node in entries(self.shard):
            standing = self.health.nodes[node.name]
            if standing.role is Role.FOREIGN:
                raise ConfigError(
                    "topology",
                    where,
                    f"node {node.name!r} belongs to another cluster than "
                    f"{self.shard.primary.name!r}; give a replica of it, or a shard of its own",
                )
        if self.health.clash:
            one, other = self.health.clash
            raise ConfigError(
                "topology",
                f"shard {self.shard.name!r}",
                f"{one!r} and {other!r} both take writes on timeline {self.health.timeline}; "
                "a shard has one primary: make the other its replica, or a shard of its own",
            )

    async def close(self) -> None:
        """Close every connection, and stop looking."""
        await self.home.compute(self._prober.close)
        for driver in self.drivers.values():
            await driver.close()

    def stats(self) -> dict[str, float]:
        """Return the counters of each node's pool, its latency and lag, by name."""
        found: dict[str, float] = {}
        now = self._clock()
        for name, driver in self.drivers.items():
            load, lag = self.loads[name], self.health.lag(name, now)
            found |= {f"{key}.{name}": value for key, value in driver.stats().items()}
            found[f"node_is_up.{name}"] = float(self.health.nodes[name].is_up)
            found[f"node_inflight.{name}"] = load.inflight
            found[f"node_latency_ms.{name}"] = load.latency * 1000
            found[f"node_is_ejected.{name}"] = float(load.ejected_until > now)
            found[f"node_reads.{name}"] = load.answered
            found[f"node_reads_moved.{name}"] = load.left
            if lag.seconds is not None:
                found[f"node_lag_s.{name}"] = lag.seconds
            if lag.bytes is not None:
                found[f"node_lag_bytes.{name}"] = lag.bytes
        return found


_clusters: weakref.WeakSet[Cluster] = weakref.WeakSet()


def _forked() -> None:
    for cluster in list(_clusters):
        cluster.forked()


os.register_at_fork(after_in_child=_forked)


async def position_of(driver: Driver) -> Position:
    """Ask a primary where its log is."""
    try:
        rows = await driver.fetch(compose("routing/find_position"))
    except DatabaseError as error:
        if error.sqlstate != "55000":
            raise
        raise ReadOnlyDatabase(str(error), error.sqlstate) from error  # a replica by now
    sysid, timeline, lsn, segment = rows[0]
    return Position(sysid, timeline, settled(int(lsn), segment))


def entries(shard: Shard) -> Iterator[tuple[str, Node]]:
    """Yield the nodes of a shard with how a topology's file calls them."""
    yield f"{shard.name}.primary", shard.primary
    for number, replica in enumerate(shard.replicas):
        yield f"{shard.name}.replicas[{number}]", replica
