"""A proxy before a server, to lose what a network can lose at the worst moment."""

from __future__ import annotations

import select
import socket
import threading

from psycopg.conninfo import conninfo_to_dict, make_conninfo


class Proxy:
    """Stands before a server; once armed, it drops the reply to the next COMMIT."""

    def __init__(self, dsn: str) -> None:
        parts = conninfo_to_dict(dsn)
        self._server = (str(parts["host"]), int(str(parts["port"])))
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.dsn = make_conninfo(dsn, host="127.0.0.1", port=self._listener.getsockname()[1])
        self.is_armed = False
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        # shutdown wakes the thread in accept, close alone does not
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client, socket.create_connection(self._server) as server:
            while True:
                for source in select.select([client, server], [], [])[0]:
                    try:
                        said = source.recv(65536)
                        if not said:
                            return
                        (server if source is client else client).sendall(said)
                    except OSError:
                        return
                    if source is client and self.is_armed and b"COMMIT" in said:
                        self.is_armed = False
                        server.recv(65536)  # it is stored, and nobody is told
                        return
