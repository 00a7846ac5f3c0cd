"""Fixtures: servers for a cache, which tests may stop, freeze and fill."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import redis
from fix_servers import die_with_parent, give_up

from toolkit.local.binaries import valkey_wheel

REDIS = Path("/usr/bin/redis-server")
_DEBIAN = ("redis-server", "redis-tools", "libjemalloc2", "liblzf1")


def redis_program(folder: Path) -> Path | None:
    """Debian's Redis: the system's, else unpacked into ``folder``, which takes no root."""
    if REDIS.exists():
        return REDIS
    if shutil.which("apt-get") is None or shutil.which("dpkg") is None:
        return None
    folder.mkdir()
    for command in (
        ["apt-get", "download", "-qq", "-o", "Acquire::http::Timeout=10", *_DEBIAN],
        ["sh", "-c", "for f in *.deb; do dpkg -x $f . || exit; done"],
    ):
        try:
            subprocess.run(command, cwd=folder, check=True, capture_output=True, timeout=60)
        except (OSError, subprocess.SubprocessError):
            return None
    program = folder / "usr/bin/redis-server"
    return program if program.exists() else None


class CacheServer:
    """A Redis or Valkey of the tests' own, without a password; ends with them."""

    def __init__(self, program: Path, folder: Path) -> None:
        folder.mkdir()
        self._program = program
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self.path = folder / "socket"
        self.admin = redis.Redis(port=self.port, protocol=2)

    def start(self) -> None:
        """Start it, empty, on the same port as ever."""
        library = self._program.parent.parent / "lib" / f"{os.uname().machine}-linux-gnu"
        said = ["--port", str(self.port), "--bind", "127.0.0.1", "--unixsocket", str(self.path)]
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [self._program, *said, "--save", "", "--dir", str(self._folder)],
                env=os.environ | {"LD_LIBRARY_PATH": str(library)},
                stdout=log,
                stderr=log,
                preexec_fn=die_with_parent,
            )
        deadline = time.monotonic() + 20
        while True:
            try:
                self.admin.ping()
                return
            except redis.ConnectionError:
                if self._process.poll() is not None or time.monotonic() > deadline:
                    pytest.fail(f"no cache server:\n{(self._folder / 'log').read_text()[-2000:]}")
                time.sleep(0.01)

    def stop(self) -> None:
        """Kill it; nothing of it stays."""
        self.admin.close()
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Let it be there and say nothing."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)
        try:
            os.waitid(os.P_PID, self._process.pid, os.WSTOPPED | os.WNOWAIT)
            yield
        finally:
            self._process.send_signal(signal.SIGCONT)


@pytest.fixture(scope="session")
def valkey9(run_folder: Path) -> Iterator[CacheServer]:
    """Valkey from the wheel."""
    server = CacheServer(valkey_wheel().program, run_folder / "valkey9")
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="session")
def redis7(run_folder: Path) -> Iterator[CacheServer]:
    """Redis 7, which is Debian's."""
    program = redis_program((run_folder / ".bin").resolve() / "redis7")
    if program is None:
        give_up(f"no {REDIS} (package redis-server), nor could it be downloaded")
    server = CacheServer(program, run_folder / "redis7")
    server.start()
    yield server
    server.stop()


@pytest.fixture(params=["valkey9", "redis7"])
def cache_server(request: pytest.FixtureRequest) -> CacheServer:
    """A server of either kind with nothing in it."""
    server: CacheServer = request.getfixturevalue(request.param)
    server.admin.flushall()
    return server
