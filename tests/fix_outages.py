"""Every way to lose Redis under a store: what may happen to the server, and to the line to it."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

from fix_cache_servers import CacheServer
from fix_shelf import configured


class Line:
    """Stands before a Redis; when it is bad, a reply is cut in the middle and the line is reset."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"redis://127.0.0.1:{self._listener.getsockname()[1]}/0"
        self.is_bad = False
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        # shutdown wakes the thread in accept, close alone does not
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    @contextmanager
    def bad(self) -> Iterator[None]:
        """Cut every reply from now on."""
        self.is_bad = True
        try:
            yield
        finally:
            self.is_bad = False

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client, socket.create_connection(("127.0.0.1", self._port)) as server:
            threading.Thread(target=self._reply, args=(server, client), daemon=True).start()
            with contextlib.suppress(OSError):
                while said := client.recv(65_536):
                    server.sendall(said)
            _end(server)

    def _reply(self, server: socket.socket, client: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while said := server.recv(65_536):
                if self.is_bad:
                    client.sendall(said[: len(said) // 2])
                    linger = struct.pack("ii", 1, 0)  # close sends a reset
                    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                    break
                client.sendall(said)
        _end(client)


def _end(waiting: socket.socket) -> None:
    """Wake who waits for more from a socket."""
    with contextlib.suppress(OSError):
        waiting.shutdown(socket.SHUT_RD)


Outage = Callable[[CacheServer, Line], AbstractContextManager[object]]


@contextmanager
def refused(server: CacheServer, line: Line) -> Iterator[None]:
    server.stop()
    try:
        yield
    finally:
        server.start()


@contextmanager
def restarted(server: CacheServer, line: Line) -> Iterator[None]:
    server.stop()
    server.start()
    yield


@contextmanager
def full(server: CacheServer, line: Line) -> Iterator[None]:
    with configured(server, maxmemory_policy="noeviction", maxmemory=1):
        yield


@contextmanager
def disconnected(server: CacheServer, line: Line) -> Iterator[None]:
    """Kill every client, again and again."""
    is_over = threading.Event()

    def kill() -> None:
        while not is_over.wait(0.005):
            server.admin.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        yield
    finally:
        is_over.set()
        killer.join()


OUTAGES: dict[str, Outage] = {
    "refused": refused,
    "restarted": restarted,
    "full": full,
    "disconnected": disconnected,
    "frozen": lambda server, line: server.frozen(),
    "reset": lambda server, line: line.bad(),
}
