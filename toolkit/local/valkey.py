"""One Valkey server: a cache only, so it writes nothing to disk but its log."""

from __future__ import annotations

import re
import signal
import socket
import time
from dataclasses import dataclass
from pathlib import Path

from toolkit.errors import Unavailable
from toolkit.local.account import Account
from toolkit.local.journal import rotate, size_of, tail
from toolkit.local.process import end, run, runs

_START_S = 20.0
_POLL_S = 0.01


def configuration(home: Path, log: Path, port: int, password: str) -> str:
    """The text of the configuration file; the password stands here and never in an argument."""
    return "\n".join(
        [
            "# written at every start",
            "bind 127.0.0.1",
            f"port {port}",
            f"requirepass {password}",
            "daemonize yes",
            # the command line must go on naming this file: by it we know our server
            "set-proc-title no",
            f"dir {_quoted(home)}",
            f"pidfile {_quoted(home / 'valkey.pid')}",
            f"logfile {_quoted(log)}",
            'save ""',
            "appendonly no",
            "maxmemory 256mb",
            "maxmemory-policy allkeys-lru",
            "",
        ]
    )


def _quoted(path: Path) -> str:
    """
    >>> print(_quoted(Path('/a "b"')))
    "/a \\"b\\""
    """
    return '"{}"'.format(str(path).replace("\\", "\\\\").replace('"', '\\"'))


@dataclass(frozen=True, slots=True)
class Valkey:
    """A server by its folder; holds no state of its own, so it may be shared freely."""

    home: Path
    log: Path

    @property
    def _conf(self) -> Path:
        return self.home / "valkey.conf"

    def running(self) -> int | None:
        """The live server's pid; a pid that is now another program's is not it."""
        try:
            text = (self.home / "valkey.pid").read_text(encoding="ascii", errors="replace").strip()
        except FileNotFoundError:
            return None
        return int(text) if text.isdigit() and self._is_ours(int(text)) else None

    def _is_ours(self, pid: int) -> bool:
        return runs(pid, "valkey-server", self._conf)

    def start(self, program: Path, account: Account, port: int, password: str) -> None:
        """Start the server on ``port``; one that runs but does not answer there is replaced."""
        self.stop()
        account.write(self._conf, configuration(self.home, self.log, port, password))
        rotate(self.log)
        before = size_of(self.log)
        outcome = run([program, self._conf], account, timeout_s=_START_S)
        deadline = time.monotonic() + _START_S
        while outcome.code == 0 and time.monotonic() < deadline:
            if version(port, password) is not None:
                return
            time.sleep(_POLL_S)
            if self.running() is None and "Ready to accept" in tail(self.log, before):
                break  # it came up and is gone again
            if "bind: " in tail(self.log, before):
                break
        raise Unavailable(
            f"Valkey did not start:\n{tail(self.log, before) or outcome.text}\n"
            f"(its log: {self.log})"
        )

    def stop(self) -> bool:
        """Stop the server; True if it ran."""
        if (pid := self.running()) is None:
            return False
        for number, patience_s in ((signal.SIGTERM, 5.0), (signal.SIGKILL, 5.0)):
            if end(pid, number, patience_s, lambda: self._is_ours(pid)):
                return True
        raise Unavailable(f"Valkey (process {pid}) cannot be stopped")


def version(port: int, password: str, timeout_s: float = 1.0) -> str | None:
    """The version of the server that takes this password on this port; None where none does.

    Asked over a bare socket: a client library takes longer to import than this takes to run.
    """
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=timeout_s) as connection:
            connection.sendall(f"AUTH {password}\r\nINFO server\r\n".encode("ascii"))
            answer = b""
            while not answer.endswith(b"\r\n\r\n") and (piece := connection.recv(65_536)):
                answer += piece
                if answer.startswith(b"-"):
                    return None
    except OSError:
        return None
    found = re.search(rb"valkey_version:(\S+)", answer)
    return found[1].decode("ascii") if found else None
