"""The sockets of a node's connections, so that whoever waits on one can be told it is in vain."""

from __future__ import annotations

import os
import socket
import weakref
from collections.abc import Callable
from contextlib import suppress
from threading import Lock
from typing import Any

import psycopg


class Sockets:
    """Every open connection to one node; threads may share it.

    A server that is frozen answers nothing and closes nothing: calls would wait for as long as it
    is. To shut a socket down from this side wakes them, each with the error of a lost connection.
    ``number`` says which one a connection has, for connections of other kinds than psycopg's.
    """

    def __init__(self, number: Callable[[Any], int] = lambda c: int(c.pgconn.socket)) -> None:
        self._lock = Lock()
        self._number = number
        self.cuts = 0  # who began before one need not try again
        self._open: weakref.WeakSet[Any] = weakref.WeakSet()

    def add(self, connection: object) -> None:
        """Remember a connection for as long as it lives."""
        with self._lock:
            self._open.add(connection)

    def cut(self) -> int:
        """Shut down what is open; say how many there were."""
        with self._lock:
            self.cuts += 1
            there = list(self._open)
        count = 0
        for connection in there:
            with suppress(psycopg.Error, OSError):  # closed already
                _shut_down(self._number(connection))
                count += 1
        return count


def shut_down(connection: psycopg.BaseConnection[Any]) -> None:
    """Shut one connection's socket down; it stays open, for its owner to find and close."""
    _shut_down(connection.pgconn.socket)


def _shut_down(number: int) -> None:
    with socket.socket(fileno=os.dup(number)) as copy:
        copy.shutdown(socket.SHUT_RDWR)
