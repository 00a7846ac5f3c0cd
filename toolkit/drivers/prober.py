"""Looks at the nodes of a shard, beside all work: a thread with an event loop of its own."""

from __future__ import annotations

import asyncio
import atexit
import logging
import os
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from threading import Event, Lock, Thread
from typing import Any, Protocol

import psycopg

from toolkit.drivers import session
from toolkit.drivers.failures import translate
from toolkit.drivers.sockets import shut_down
from toolkit.errors import NoConnection, QueryTimeout
from toolkit.options import PoolOptions
from toolkit.statements import compose
from toolkit_routing import Node, Sample, settled

_log = logging.getLogger("toolkit.drivers")
_KNOCK_S = 1.0  # between looks at a pooler that calls are stuck behind
_Connection = psycopg.AsyncConnection[Any]


class Watcher(Protocol):
    """Who is told what was found; called in the prober's thread."""

    def saw(self, name: str, sample: Sample) -> None: ...
    def silent(self, name: str, asked_at: float, why: str) -> None: ...
    def full(self, name: str, asked_at: float, why: str) -> None: ...
    def refused(self, name: str, why: str) -> None: ...
    def is_stuck(self, name: str) -> bool: ...


class Prober:
    """Asks each node every ``interval`` seconds what it is and how far it has come.

    Each look may take ``deadline`` seconds, connecting included; it uses a connection that
    nothing else does, so that neither a busy pool nor a busy event loop is taken for a dead
    server. Where a pooler stands before a node, whether that answers is looked at when calls
    through it fail, or get stuck. Who nobody has asked for in ``idle`` seconds is left alone until
    somebody does. The watcher is not kept alive: without it, nobody looks.
    """

    def __init__(
        self,
        nodes: Sequence[Node],
        watcher: Watcher,
        options: PoolOptions,
        *,
        interval: float = 0.25,
        deadline: float = 0.5,
        idle: float = 30.0,
    ) -> None:
        self.nodes = nodes
        self.watcher = weakref.ref(watcher)
        self.options = replace(
            options,
            application_name=f"{options.application_name} probe",
            statement_timeout=max(deadline, 0.1),
        )
        self.interval = interval
        self.deadline = deadline
        self.idle = idle
        self.touched = time.monotonic()
        self._lock = Lock()
        self._rounds: _Rounds | None = None
        _probers.add(self)

    def touch(self) -> None:
        """Hear that somebody needs to know; begins to look, or goes on."""
        self.touched = time.monotonic()
        rounds = self._rounds
        if rounds is None or not rounds.is_ours or rounds.is_over:
            self._start()

    def hurry(self, name: str | None = None) -> None:
        """Look at a node now, or at all of them, and not when its turn comes, if anybody looks.

        At a node by name also at the pooler before it: a call to it has failed.
        """
        rounds = self._rounds
        if rounds is not None and rounds.is_ours:
            rounds.hurry(name)

    def close(self) -> None:
        """Stop looking, until somebody asks again."""
        with self._lock:
            rounds, self._rounds = self._rounds, None
        if rounds is not None and rounds.is_ours:
            rounds.end()

    def forked(self) -> None:
        """In a forked child: the thread, and who may have held the lock, stayed in the parent."""
        self._lock = Lock()

    def _start(self) -> None:
        with self._lock:
            rounds = self._rounds
            if rounds is None or not rounds.is_ours or rounds.is_over:
                self._rounds = _Rounds(self)


_probers: weakref.WeakSet[Prober] = weakref.WeakSet()


def _at_exit() -> None:
    for prober in list(_probers):  # a thread that runs on meets an interpreter half gone
        prober.close()


atexit.register(_at_exit)


class _Rounds:
    """A thread that looks, from when somebody asks until nobody has for a while."""

    def __init__(self, prober: Prober) -> None:
        self.is_over = False
        self._prober = prober
        self._owner = os.getpid()
        self._looks = {n.name: _Look(n, prober.options, prober.watcher) for n in prober.nodes}
        started = Event()
        self._thread = Thread(target=self._run, args=(started,), name="toolkit-prober", daemon=True)
        self._thread.start()
        started.wait(5.0)

    @property
    def is_ours(self) -> bool:
        """Whether it was not forked away: then the thread stayed in the parent."""
        return self._owner == os.getpid()

    def hurry(self, name: str | None) -> None:
        """Look now."""
        if name is not None:
            self._looks[name].is_doubtful = True
        with suppress(RuntimeError):  # it has just been closed
            self._loop.call_soon_threadsafe(self._wake, name)

    def end(self) -> None:
        """Stop, and return when it has."""
        self.is_over = True
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._wake, None)
        self._thread.join(4 * self._prober.deadline + 1.0)

    def _wake(self, name: str | None) -> None:
        for each, asked in self._asked.items():
            if name is None or each == name:
                asked.set()

    def _run(self, started: Event) -> None:
        with asyncio.Runner() as runner:
            self._loop = runner.get_loop()
            self._asked = {name: asyncio.Event() for name in self._looks}
            started.set()
            runner.run(self._all())

    async def _all(self) -> None:
        async with asyncio.TaskGroup() as group:
            for name, look in self._looks.items():
                group.create_task(self._watch(look, self._asked[name]))

    async def _watch(self, look: _Look, asked: asyncio.Event) -> None:
        prober = self._prober
        while not self.is_over and self.is_ours:
            asked.clear()
            began = time.monotonic()
            if began - prober.touched > prober.idle or prober.watcher() is None:
                self.is_over = True
                break
            try:
                await look.report(prober.deadline)
            except Exception:  # the top of a thread
                _log.exception("a look at %s", look.name)
                look.drop()
            with suppress(TimeoutError), look.ends(asked.set):
                pause = max(0.0, prober.interval - (time.monotonic() - began))
                await asyncio.wait_for(asked.wait(), pause)
        await look.close()


class _Look:
    """One node's connection, and the question it is asked.

    While it ``is_doubtful`` whether the pooler before it answers, that is asked first.
    """

    def __init__(
        self, node: Node, options: PoolOptions, watcher: Callable[[], Watcher | None]
    ) -> None:
        self.name = node.name
        self.is_doubtful = False
        self._conninfo = node.direct or node.conninfo
        self._pooled = node.conninfo if node.direct else ""
        self._options = options
        self._watcher = watcher
        self._connection: _Connection | None = None
        self._is_connecting = self._is_cut = False
        self._knocked_at = float("-inf")
        self._tells = True
        self._statement = compose("routing/look_at_node")

    async def report(self, deadline: float) -> None:
        """Look once, and tell the watcher what was found."""
        asked_at = time.monotonic()
        due = asked_at + deadline
        task = asyncio.create_task(self._take())
        done, _ = await asyncio.wait({task}, timeout=deadline)
        if not done and time.monotonic() - due > deadline / 2:
            # it is we who are late, this process gets no turn: the answer may be here
            done, _ = await asyncio.wait({task}, timeout=deadline)
        if not done:
            self._cut(task)
            await asyncio.gather(task, return_exceptions=True)
            self.drop()
        watcher = self._watcher()
        if watcher is None:
            return
        if not done:
            who = " of the pooler before it" if self.is_doubtful else ""
            watcher.silent(self.name, asked_at, f"no answer{who} within {deadline:g} s")
            return
        try:
            sample = task.result()
        except psycopg.Error as error:
            self.drop()
            found = translate(error)
            if isinstance(found, NoConnection):
                watcher.full(self.name, asked_at, str(found))
            elif isinstance(found, QueryTimeout):
                watcher.silent(self.name, asked_at, str(found))  # it is there
            else:
                watcher.refused(self.name, str(found))
        else:
            watcher.saw(self.name, sample)

    async def _take(self) -> Sample:
        self._is_cut = False
        if self._pooled:
            await self._look_at_pooler()
        connection = self._connection
        if connection is not None and not connection.closed:
            try:
                return await self._ask(connection, is_anew=False)
            except psycopg.OperationalError:
                if self._is_cut or not connection.broken:
                    raise
                self.drop()  # the server may be well, and this one connection ended
        connection = await self._connect(self._conninfo)
        self._connection, self._tells = connection, True
        await connection.execute(*session.prepare(self._options, connection.info.backend_pid))
        return await self._ask(connection, is_anew=True)

    async def _ask(self, connection: _Connection, *, is_anew: bool) -> Sample:
        asked_at, version = time.monotonic(), connection.info.server_version
        if self._tells:
            try:
                row = await self._row(connection, self._statement)
            except session.NOT_TOLD as error:
                _log.info("a node does not tell how far its log has come: %s", error)
                self._tells = False
            else:
                return replace(_sample(asked_at, time.monotonic(), row, version), is_anew=is_anew)
        row = await self._row(connection, compose("routing/look_at_managed"))
        is_replica, at, is_read_only = row
        return Sample(
            asked_at,
            time.monotonic(),
            is_replica,
            None,
            None,
            None,
            skew=_skew(at, asked_at),
            version=version,
            is_read_only=is_read_only,
            is_anew=is_anew,
        )

    @contextmanager
    def ends(self, wake: Callable[[], None]) -> Iterator[None]:
        """Call ``wake`` where the connection comes to an end while nothing is asked."""
        connection = self._connection
        if connection is None or connection.closed:
            yield
            return
        loop, number = asyncio.get_running_loop(), connection.fileno()
        loop.add_reader(number, wake)
        try:
            yield
        finally:
            loop.remove_reader(number)

    async def _row(self, connection: _Connection, statement: bytes) -> Any:
        cursor = await connection.execute(statement, binary=True)
        return await cursor.fetchone()

    async def _connect(self, conninfo: str) -> _Connection:
        self._is_connecting = True
        # unprepared: a pooler may give each look another session
        arguments = {**session.arguments(conninfo, self._options), "prepare_threshold": None}
        connection = await _Connection.connect(conninfo, **arguments)
        self._is_connecting = False
        return connection

    async def _look_at_pooler(self) -> None:
        """Knock at the pooler where there is reason to; a busy one answers, if not the question."""
        now, watcher = time.monotonic(), self._watcher()
        is_due = now - self._knocked_at > _KNOCK_S
        if not self.is_doubtful and not (is_due and watcher and watcher.is_stuck(self.name)):
            return
        self._knocked_at, self.is_doubtful = now, True
        try:
            connection = await self._connect(self._pooled)
        except psycopg.Error as error:
            if not isinstance(translate(error), NoConnection):
                raise psycopg.OperationalError(f"the pooler before it: {error}") from error
        else:
            connection.pgconn.finish()
        self.is_doubtful = False

    def _cut(self, task: asyncio.Task[Sample]) -> None:
        """End a question that is not answered."""
        if self._connection is None or self._is_connecting:
            task.cancel()
            return
        self._is_cut = True
        with suppress(psycopg.Error, OSError):
            shut_down(self._connection)

    def drop(self) -> None:
        """Give the connection up as it is."""
        connection, self._connection, self._is_connecting = self._connection, None, False
        if connection is not None:
            connection.pgconn.finish()

    async def close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.close()


def _sample(asked_at: float, heard_at: float, row: Any, version: int) -> Sample:
    is_replica, sysid, timeline, lsn, received, receiver, is_paused, at, is_read_only = row
    if lsn is not None:
        lsn = int(lsn) if is_replica else settled(int(lsn))
    return Sample(
        asked_at,
        heard_at,
        is_replica,
        sysid,
        timeline,
        lsn,
        int(received) if received is not None else None,
        receiver,
        is_paused,
        _skew(at, asked_at),
        version,
        is_read_only,
    )


def _skew(theirs: float, asked_at: float) -> float:
    """Return by how much a server's clock is ahead of ours, about."""
    return theirs - (time.time() - (time.monotonic() - asked_at))
