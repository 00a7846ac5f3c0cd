"""The thread that hears what others publish on a Redis or Valkey, for the blocking wire."""

from __future__ import annotations

import select
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeAlias

import redis

from toolkit.drivers.shelf_push import PATIENCE_S, QUIET_S, Subscriptions

Connection: TypeAlias = Any  # redis-py's, which is half typed
_JOIN_S = 1.0


class Listener:
    """One connection and the thread that reads it, until it is lost or stopped.

    Other threads only wake it; it alone touches the connection, which TLS could not share.
    """

    def __init__(self, dial: Callable[[], Connection], subscriptions: Subscriptions) -> None:
        self._dial = dial
        self._subscriptions = subscriptions
        self._subscribed: set[str] = set()
        self._is_stopped = False
        self._bell, self._door = socket.socketpair()
        for end in (self._bell, self._door):
            end.setblocking(False)
        self._thread = threading.Thread(target=self._run, name="toolkit-redis-push", daemon=True)
        try:
            self._thread.start()
        except RuntimeError:  # no thread to be had: who looks next tries again
            self._close()
            raise

    @property
    def is_alive(self) -> bool:
        """Whether it listens, or is about to."""
        return self._thread.is_alive()

    def wake(self) -> None:
        """Let it see what is new; never waits."""
        with suppress(OSError):  # it is awake, or gone
            self._bell.send(b"!")

    def stop(self) -> None:
        """Ask it to end; takes no lock, so that a garbage collector may call it."""
        self._is_stopped = True
        self.wake()

    def join(self) -> None:
        """Wait until it has ended."""
        self._thread.join(_JOIN_S)

    def leave(self) -> None:
        """In a forked child: give up our copies; the thread is the parent's."""
        self._close()

    def _close(self) -> None:
        self._bell.close()
        self._door.close()

    def _run(self) -> None:
        connection = None
        failure: Exception | None = None
        try:
            connection = self._dial()
            self._listen(connection)
        except Exception as error:  # the top of a thread
            failure = error
        finally:
            if connection is not None:
                connection.disconnect()
            self._close()
            self._subscriptions.ended(time.monotonic(), failure)

    def _listen(self, connection: Connection) -> None:
        door, line = self._door.fileno(), connection._get_socket().fileno()
        poller = select.poll()
        for descriptor in (door, line):
            poller.register(descriptor, select.POLLIN)
        is_asked = False
        while not self._is_stopped:
            self._subscribe(connection)
            pause = PATIENCE_S if is_asked else QUIET_S
            ready = {descriptor for descriptor, _ in poller.poll(1000 * pause)}
            if door in ready:
                self._door.recv(4_096)
            if line in ready:
                self._read(connection)
            if ready:
                is_asked = is_asked and line not in ready
            elif is_asked:
                raise redis.TimeoutError("silent")
            else:
                connection.send_command("PING", check_health=False)
                is_asked = True

    def _subscribe(self, connection: Connection) -> None:
        if found := self._subscriptions.besides(self._subscribed):
            connection.send_command("SUBSCRIBE", *found, check_health=False)
            self._subscribed.update(found)

    def _read(self, connection: Connection) -> None:
        while True:
            said = connection.read_response(push_request=True)
            self._subscriptions.take(time.monotonic(), said)
            if not connection.can_read(0):
                return
