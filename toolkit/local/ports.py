"""Ports on loopback: is one free, and which to take."""

from __future__ import annotations

import errno
import secrets
import socket

from toolkit.errors import Unavailable

# below 32768, where Linux's ephemeral ports begin: a port kept between runs must not be one that
# any outgoing connection may hold by chance
_FIRST, _LAST = 20_000, 32_000


def is_free(port: int) -> bool:
    """Whether a server could listen on the port now."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        # as the servers do: a closed server's lingering connections do not hold its port
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            if error.errno in (errno.EADDRINUSE, errno.EACCES):
                return False
            raise
    return True


def choose() -> int:
    """A free port, picked at random so that instances do not meet."""
    for _ in range(200):
        port = _FIRST + secrets.randbelow(_LAST - _FIRST)
        if is_free(port):
            return port
    raise Unavailable(f"no free port on 127.0.0.1 between {_FIRST} and {_LAST}")
