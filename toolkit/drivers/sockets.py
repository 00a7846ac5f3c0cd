"""The connections to a node, so that whoever waits on one can be told it is in vain."""

from __future__ import annotations

import os
import socket
import weakref
from collections.abc import Callable
from contextlib import suppress
from threading import Lock
from typing import Any

import psycopg


def shut_down(connection: psycopg.BaseConnection[Any]) -> None:
    """Shut one connection's socket down; it stays open, for its owner to find and close."""
    number = connection.pgconn.socket
    # of a copy neither the family nor the kind matters
    with socket.fromfd(number, socket.AF_INET, socket.SOCK_STREAM) as copy:
        if connection.pgconn.socket == number:  # else closed meanwhile, and copied is another's
            copy.shutdown(socket.SHUT_RDWR)


class Sockets:
    """Every open connection of this process to one node; threads may share it.

    A server that is frozen answers nothing and closes nothing: calls would wait for as long as it
    is. To shut a socket down from this side wakes them, each with the error of a lost connection.
    In a forked child none is open: the parent's are shared with it, and not its own to shut down.
    """

    def __init__(self) -> None:
        self.cuts = 0  # who began before one need not try again
        self.forked()
        _all.add(self)

    def forked(self) -> None:
        """In a forked child: whoever held our lock is not here, and what was open is not ours."""
        self._lock = Lock()
        self._open: weakref.WeakKeyDictionary[Any, Callable[[Any], None]]
        self._open = weakref.WeakKeyDictionary()

    def add(self, connection: object, end: Callable[[Any], None] = shut_down) -> None:
        """Remember a connection for as long as it lives, and how it is ended from any thread."""
        with self._lock:
            self._open[connection] = end

    def cut(self) -> int:
        """Shut down what is open; say how many there were."""
        with self._lock:
            self.cuts += 1
            there = list(self._open.items())
        count = 0
        for connection, end in there:
            with suppress(psycopg.Error, OSError):  # closed already
                end(connection)
                count += 1
        return count


_all: weakref.WeakSet[Sockets] = weakref.WeakSet()


def _forked() -> None:
    for sockets in list(_all):
        sockets.forked()


os.register_at_fork(after_in_child=_forked)
