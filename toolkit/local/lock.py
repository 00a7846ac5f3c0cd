"""One process at a time may start or stop an instance."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from toolkit.errors import Busy, ConfigError

_POLL_S = 0.02


@contextmanager
def held(path: Path, *, timeout_s: float, what: str) -> Iterator[None]:
    """Hold the lock file, waiting up to ``timeout_s`` for it; the kernel frees it if we die."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    except PermissionError as error:
        raise ConfigError(what, "", "they belong to another user; be that user, or root") from error
    except OSError as error:
        raise ConfigError(what, "", f"cannot use {path}: {error.strerror}") from error
    try:
        deadline = time.monotonic() + timeout_s
        while not _taken(descriptor):
            if time.monotonic() >= deadline:
                holder = os.pread(descriptor, 20, 0).decode("ascii", "replace").strip() or "unknown"
                raise Busy(
                    f"{what}: process {holder} is starting or stopping them and did not finish "
                    f"within {timeout_s:g} s; wait for it, or end it and try again"
                )
            time.sleep(_POLL_S)
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode("ascii"), 0)
        yield
    finally:
        os.close(descriptor)


def _taken(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
