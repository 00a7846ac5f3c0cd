"""How the connections to a node are broken: those that are ours, and no other."""

from __future__ import annotations

import os
import socket
from typing import Any

import psycopg
import pytest
from fix_servers import Database

from toolkit.drivers.sockets import Sockets


def test_who_waits_is_told_and_what_is_closed_is_passed_over(database: Database) -> None:
    sockets = Sockets()
    with psycopg.connect(database.dsn) as one, psycopg.connect(database.dsn) as other:
        for connection in (one, other):
            sockets.add(connection)
        one.close()
        assert (sockets.cut(), sockets.cuts) == (1, 1)
        with pytest.raises(psycopg.OperationalError):
            other.execute("SELECT 1")


def test_a_socket_that_took_the_number_of_a_closed_one_is_left_alone(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One thread reads the number, another closes the connection and opens something else."""
    copy = socket.fromfd
    strangers: list[socket.socket] = []
    with psycopg.connect(database.dsn) as connection:
        number = connection.pgconn.socket

        def closed_meanwhile(*args: Any) -> socket.socket:
            connection.close()
            strangers.extend(socket.socketpair())
            return copy(*args)

        monkeypatch.setattr(socket, "fromfd", closed_meanwhile)
        sockets = Sockets()
        sockets.add(connection)
        assert sockets.cut() == 0
    one, other = strangers
    with one, other:
        assert number in (one.fileno(), other.fileno())
        one.sendall(b"still")
        assert other.recv(5) == b"still"


def test_a_forked_child_leaves_its_parents_alone(database: Database) -> None:
    sockets = Sockets()
    with psycopg.connect(database.dsn, autocommit=True) as connection:
        sockets.add(connection)
        with sockets._lock:  # a thread of the parent may have it
            child = os.fork()
            if child == 0:
                count = -1
                try:
                    count = sockets.cut()
                finally:
                    os._exit(count)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert connection.execute("SELECT 1").fetchone() == (1,)
        assert sockets.cut() == 1
