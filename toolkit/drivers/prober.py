"""Looks at the nodes of a shard, beside all work: a thread with an event loop of its own."""

from __future__ import annotations

import asyncio
import atexit
import logging
import os
import time
import weakref
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from threading import Event, Lock, Thread
from typing import Any, Protocol

import psycopg

from toolkit.drivers import session
from toolkit.drivers.failures import translate
from toolkit.drivers.sockets import shut_down
from toolkit.errors import NoConnection
from toolkit.options import PoolOptions
from toolkit.statements import compose
from toolkit_routing import Node, Sample, settled

_log = logging.getLogger("toolkit.drivers")
_Connection = psycopg.AsyncConnection[Any]


class Watcher(Protocol):
    """Who is told what was found; called in the prober's thread."""

    def saw(self, name: str, sample: Sample) -> None: ...
    def silent(self, name: str, asked_at: float, why: str) -> None: ...
    def refused(self, name: str, why: str) -> None: ...


class Prober:
    """Asks each node every ``interval`` seconds what it is and how far it has come.

    Each look may take ``deadline`` seconds, connecting included; it uses a connection that
    nothing else does, so that neither a busy pool nor a busy event loop is taken for a dead
    server. Who nobody has asked for in ``idle`` seconds is left alone until somebody does.
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
        self._nodes = nodes
        self._watcher = watcher
        self._options = replace(
            options,
            application_name=f"{options.application_name} probe",
            statement_timeout=max(deadline, 0.1),
        )
        self.interval = interval
        self.deadline = deadline
        self._idle = idle
        self._lock = Lock()
        self._thread: Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._asked: dict[str, asyncio.Event] = {}
        self._owner = os.getpid()
        self._touched = time.monotonic()
        self._is_idle = False
        self._is_closed = False
        _probers.add(self)

    def touch(self) -> None:
        """Hear that somebody needs to know; begins to look, or goes on."""
        self._touched = time.monotonic()
        if self._thread is None or self._owner != os.getpid() or self._is_idle:
            self._start()

    def hurry(self, name: str | None = None) -> None:
        """Look at a node now, or at all of them, and not when its turn comes."""
        self.touch()
        loop = self._loop
        if loop is not None:
            with suppress(RuntimeError):  # it has just been closed
                loop.call_soon_threadsafe(self._wake, name)

    def close(self) -> None:
        """Stop looking, until somebody asks again."""
        self._is_closed = True
        with self._lock:
            thread, loop, self._thread, self._loop = self._thread, self._loop, None, None
        if thread is None or loop is None or self._owner != os.getpid():
            return
        with suppress(RuntimeError):
            loop.call_soon_threadsafe(self._wake, None)
        thread.join(4 * self.deadline + 1.0)

    def forked(self) -> None:
        """In a forked child: the thread, and who may have held the lock, stayed in the parent."""
        self._lock = Lock()

    def _start(self) -> None:
        with self._lock:
            if self._owner != os.getpid():  # a fork: the thread stayed in the parent
                self._owner, self._thread, self._loop = os.getpid(), None, None
            self._is_closed = False
            if self._thread is not None:
                if self._is_idle and self._loop is not None:
                    self._is_idle = False
                    self._loop.call_soon_threadsafe(self._wake, None)
                return
            started = Event()
            self._thread = Thread(
                target=self._run, args=(started,), name="toolkit-prober", daemon=True
            )
            self._thread.start()
        started.wait(5.0)

    def _wake(self, name: str | None) -> None:
        for each, asked in self._asked.items():
            if name is None or each == name:
                asked.set()

    def _run(self, started: Event) -> None:
        with asyncio.Runner() as runner:
            self._loop = runner.get_loop()
            self._asked = {node.name: asyncio.Event() for node in self._nodes}
            started.set()
            runner.run(self._all())

    async def _all(self) -> None:
        async with asyncio.TaskGroup() as group:
            for node in self._nodes:
                group.create_task(self._watch(node))

    async def _watch(self, node: Node) -> None:
        look, asked = _Look(node, self._options), self._asked[node.name]
        me = self._owner
        while not self._is_closed and me == os.getpid():
            asked.clear()
            began = time.monotonic()
            try:
                await self._look(node, look)
            except Exception:  # the top of a thread
                _log.exception("a look at %s", node.name)
                look.drop()
            pause = max(0.0, self.interval - (time.monotonic() - began))
            if time.monotonic() - self._touched > self._idle:
                await look.close()
                self._is_idle, pause = True, 3600.0
            with suppress(TimeoutError):
                await asyncio.wait_for(asked.wait(), pause)
        await look.close()

    async def _look(self, node: Node, look: _Look) -> None:
        asked_at = time.monotonic()
        due = asked_at + self.deadline
        task = asyncio.create_task(look.take())
        done, _ = await asyncio.wait({task}, timeout=self.deadline)
        if not done and time.monotonic() - due > self.deadline / 2:
            # it is we who are late, this process gets no turn: the answer may be here
            done, _ = await asyncio.wait({task}, timeout=self.deadline)
        if not done:
            why = f"no answer within {self.deadline:g} s"
            self._watcher.silent(node.name, asked_at, why)
            if not look.cut():  # it is still being made
                task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            look.drop()
            return
        try:
            sample = task.result()
        except psycopg.Error as error:
            look.drop()
            found = translate(error)
            if isinstance(found, NoConnection):
                self._watcher.silent(node.name, asked_at, str(found))  # it is there
            else:
                self._watcher.refused(node.name, str(found))
        else:
            self._watcher.saw(node.name, sample)


_probers: weakref.WeakSet[Prober] = weakref.WeakSet()


def _at_exit() -> None:
    for prober in list(_probers):  # a thread that runs on meets an interpreter half gone
        prober.close()


atexit.register(_at_exit)


class _Look:
    """One node's connection, and the question it is asked."""

    def __init__(self, node: Node, options: PoolOptions) -> None:
        self._conninfo = node.direct or node.conninfo
        self._options = options
        self._connection: _Connection | None = None
        self._tells = True
        self._statement = compose("routing/look_at_node")

    async def take(self) -> Sample:
        asked_at = time.monotonic()
        connection = self._connection
        if connection is None or connection.closed:
            arguments = session.arguments(self._conninfo, self._options)
            connection = await _Connection.connect(self._conninfo, **arguments)
            self._connection, self._tells = connection, True
            await connection.execute(*session.prepare(self._options, connection.info.backend_pid))
            asked_at = time.monotonic()
        version = connection.info.server_version
        if self._tells:
            try:
                row = await self._row(connection, self._statement)
            except session.NOT_TOLD as error:
                _log.info("a node does not tell how far its log has come: %s", error)
                self._tells = False
            else:
                return _sample(asked_at, time.monotonic(), row, version)
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
        )

    async def _row(self, connection: _Connection, statement: bytes) -> Any:
        cursor = await connection.execute(statement, binary=True)
        return await cursor.fetchone()

    def cut(self) -> bool:
        """End a question that is not answered; False if there is no connection yet."""
        if self._connection is None:
            return False
        with suppress(psycopg.Error, OSError):
            shut_down(self._connection)
        return True

    def drop(self) -> None:
        """Give the connection up as it is."""
        connection, self._connection = self._connection, None
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
