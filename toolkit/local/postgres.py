"""One PostgreSQL server: made, started, watched and stopped through its own programs."""

from __future__ import annotations

import logging
import os
import re
import signal
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from toolkit.errors import ConfigError, Unavailable
from toolkit.local.account import Account
from toolkit.local.folders import beside, discard
from toolkit.local.journal import rotate, size_of, tail
from toolkit.local.layout import MAKING
from toolkit.local.process import end, run, runs

log = logging.getLogger(__name__)

SETTINGS: Mapping[str, str] = {
    "shared_buffers": "256MB",
    "max_connections": "100",
    "wal_level": "replica",
    "max_wal_senders": "10",
    "max_wal_size": "2GB",
    "hot_standby": "on",
    # pg_rewind needs them where the data has no checksums, which is so before PostgreSQL 18
    "wal_log_hints": "on",
    # and what was written since the last checkpoint; the least of WAL that is kept anyway is 80 MB
    "wal_keep_size": "64MB",
    # a replica that is gone for good does not fill the disk with what it has yet to read
    "max_slot_wal_keep_size": "1GB",
    "log_timezone": "UTC",
}
_FIXED: Mapping[str, str] = {
    "listen_addresses": "127.0.0.1",
    # no socket: its path would have to stay below 108 bytes, and passwords are asked either way
    "unix_socket_directories": "",
    "password_encryption": "scram-sha-256",
    # the doctor knows by it whose the settings are
    "toolkit.local": "on",
}
_CONF = "toolkit.conf"
_REPLICATION = "replication.conf"
_SIGNAL = "standby.signal"
_MARKER = "toolkit.ready"
_START_S = 60.0
_POLL_S = 0.01
# PostgreSQL asks whether the pid in a stale postmaster.pid is alive; no system has this one
_NOBODYS_PID = 2**31 - 1


def configuration(settings: Mapping[str, str], port: int) -> str:
    """The text of our part of the configuration.

    >>> print(*configuration({"work_mem": "8MB"}, 5432).splitlines()[-2:], sep="\\n")
    include_if_exists 'replication.conf'
    port = 5432
    """
    for name in settings:
        if name in _FIXED or name == "port":
            raise ConfigError("local servers", f"settings.{name}", "is fixed; leave it out")
        if not re.fullmatch(r"[a-z_][a-z0-9_.]*", name):
            raise ConfigError("local servers", "settings", f"{name!r} is no setting's name")
    lines = [
        f"{name} = {quoted(value)}" for name, value in {**SETTINGS, **settings, **_FIXED}.items()
    ]
    include = f"include_if_exists '{_REPLICATION}'"
    return "\n".join(["# written at every start", *lines, include, f"port = {port}", ""])


def on_port(text: str, port: int) -> str:
    """A configuration for another port.

    >>> on_port(configuration({}, 1), 5432) == configuration({}, 5432)
    True
    """
    return re.sub(r"^port = \d+$", f"port = {port}", text, flags=re.MULTILINE)


def quoted(value: str) -> str:
    """A setting's value as it stands in a configuration file.

    >>> print(quoted("it's"))
    'it''s'
    """
    return "'{}'".format(value.replace("\\", "\\\\").replace("'", "''"))


def initdb_command(program: Path, data: Path, password_file: Path, *, sync: bool) -> list[str]:
    """The command that makes a data folder whose every road in asks for a SCRAM password."""
    return [
        str(program.with_name("initdb")),
        f"--pgdata={data}",
        "--username=postgres",
        "--auth=scram-sha-256",
        f"--pwfile={password_file}",
        "--encoding=UTF8",
        "--no-locale",
        "--no-instructions",
        *([] if sync else ["--no-sync"]),
    ]


def start_command(program: Path, data: Path, log_file: Path) -> list[str]:
    """The command that starts a server and waits until it takes connections."""
    return [
        str(program.with_name("pg_ctl")),
        "start",
        f"--pgdata={data}",
        f"--log={log_file}",
        "--wait",
        f"--timeout={_START_S:.0f}",
        "--silent",
    ]


@dataclass(frozen=True, slots=True)
class PidFile:
    """What ``postmaster.pid`` says."""

    pid: int
    port: int | None
    is_ready: bool

    @classmethod
    def from_text(cls, text: str) -> PidFile | None:
        """Read the file's lines: pid, data, start, port, socket, address, key, status.

        >>> PidFile.from_text("77\\n/d\\n1\\n5432\\n\\n127.0.0.1\\n  9 9\\nready   \\n")
        PidFile(pid=77, port=5432, is_ready=True)
        >>> PidFile.from_text("77\\n/d\\n1\\n")
        PidFile(pid=77, port=None, is_ready=False)
        >>> PidFile.from_text("") is None
        True
        """
        lines = [line.strip() for line in text.splitlines()] + [""] * 8
        if not lines[0].lstrip("-").isdigit():
            return None
        port = int(lines[3]) if lines[3].isdigit() else None
        return cls(abs(int(lines[0])), port, lines[7] in ("ready", "standby"))


@dataclass(frozen=True, slots=True)
class Postgres:
    """A server by its data folder; holds no state of its own, so it may be shared freely."""

    data: Path
    log: Path

    @property
    def is_made(self) -> bool:
        """Whether making the data folder once came to its end."""
        return (self.data / _MARKER).exists()

    def mark_made(self, account: Account) -> None:
        """Say that the folder is complete; what lacks the mark is made anew."""
        account.write(self.data / _MARKER, "complete\n")

    def data_version(self) -> str | None:
        """The major version that made the data; None where there is none."""
        return _read(self.data / "PG_VERSION")

    def running(self) -> PidFile | None:
        """The live server on this data folder; a pid that is now another program's is not it."""
        text = _read(self.data / "postmaster.pid")
        file = PidFile.from_text(text) if text else None
        return file if file and runs(file.pid, "postgres", self.data) else None

    def configured(self) -> str | None:
        """The text of our part of the configuration; None before the first start."""
        return _read(self.data / _CONF, strip=False)

    @property
    def can_replicate(self) -> bool:
        """Whether it was started with all that replicas need: before there were any it was not."""
        return _REPLICATION in (self.configured() or "")

    @property
    def is_standby(self) -> bool:
        """Whether it follows another server; PostgreSQL removes the file when it is promoted."""
        return (self.data / _SIGNAL).exists()

    @property
    def timeline(self) -> int:
        """The newest timeline it has seen; a promotion writes its history before all else.

        The control file would lag behind, up to the next checkpoint.
        """
        found = (self.data / "pg_wal").glob("????????.history")
        return max((int(path.stem, 16) for path in found), default=1)

    def replication(self) -> str:
        """What it is told about whom it follows, or who follows it."""
        return _read(self.data / _REPLICATION, strip=False) or ""

    def set_replication(self, account: Account, text: str) -> bool:
        """Tell it; a server that runs reads it at once. True if that was news."""
        if self.replication() == text:
            return False
        account.write(self.data / _REPLICATION, text)
        if (running := self.running()) is not None:
            os.kill(running.pid, signal.SIGHUP)
        return True

    def make_standby(self, account: Account) -> None:
        """Let it follow another server from its next start on."""
        account.write(self.data / _SIGNAL, "")

    def make(self, program: Path, account: Account, password: str, *, sync: bool) -> None:
        """Make the data folder; what an interrupted attempt left goes first."""
        # in the log folder, which only the server's user can enter
        password_file = self.log.with_name("password.new")
        with self.anew(account) as scratch:
            try:
                account.write(password_file, password + "\n")
                outcome = run(initdb_command(program, scratch, password_file, sync=sync), account)
            finally:
                password_file.unlink(missing_ok=True)
            if outcome.code != 0:
                raise Unavailable(f"initdb failed in {scratch}:\n{outcome.text}")
            with (scratch / "postgresql.conf").open("a", encoding="utf-8") as file:
                file.write(f"\ninclude_if_exists '{_CONF}'\n")

    @contextmanager
    def anew(self, account: Account) -> Iterator[Path]:
        """An empty folder that becomes the data folder if all goes well."""
        self.stop(fast=False)
        discard(self.data)
        for left in self.data.parent.glob(f"{MAKING}*"):
            discard(left)
        # under a name of its own: an initdb whose caller was killed goes on for a while
        scratch = beside(self.data, MAKING)
        scratch.mkdir(mode=0o700)
        account.give(scratch)
        yield scratch
        scratch.rename(self.data)

    @contextmanager
    def aside(self) -> Iterator[Path]:
        """The data folder under another name while something is done to it as a whole.

        If that is cut short there is no data folder, and nobody takes half of one for whole.
        """
        scratch = beside(self.data, MAKING)
        self.data.rename(scratch)
        yield scratch
        scratch.rename(self.data)

    def start(self, program: Path, account: Account, text: str) -> None:
        """Start the server with our configuration ``text``, or wait for one that is starting.

        One that ends meanwhile, because somebody stops it, is started again.
        """
        deadline = time.monotonic() + _START_S
        while (running := self.running()) is not None:
            if running.is_ready:
                return
            if time.monotonic() > deadline:
                raise Unavailable(
                    f"PostgreSQL (process {running.pid}) is not ready after {_START_S:g} s:\n"
                    + tail(self.log)
                )
            time.sleep(_POLL_S)
        self._disown_pid_file(account)
        account.write(self.data / _CONF, text)
        self._launch(program, account)

    def _launch(self, program: Path, account: Account) -> None:
        rotate(self.log)
        # backends that outlive a killed server hold its memory for a moment: a few tries
        for attempt in range(5):
            before = size_of(self.log)
            outcome = run(start_command(program, self.data, self.log), account)
            if outcome.code == 0:
                return
            lines = tail(self.log, before)
            if "pre-existing shared memory block" not in lines or attempt == 4:
                break
            log.info("processes of a killed PostgreSQL are still ending; trying again")
            time.sleep(0.5 * (attempt + 1))
        raise Unavailable(
            f"PostgreSQL did not start in {self.data}:\n{lines or outcome.text}\n"
            f"(its log: {self.log})"
        )

    def _disown_pid_file(self, account: Account) -> None:
        """Point a stale pid file at a pid that cannot exist.

        PostgreSQL refuses to start while the pid is alive, whoever has it now. The file stays:
        from its memory key PostgreSQL sees whether backends of the old server still run.
        """
        path = self.data / "postmaster.pid"
        if (text := _read(path, strip=False)) is None:
            return
        lines = text.splitlines(keepends=True)
        if not lines or not lines[0].strip().lstrip("-").isdigit():
            path.unlink(missing_ok=True)  # cut short in a crash: PostgreSQL would call it bogus
            return
        log.info("the pid file in %s is stale", self.data)
        account.write(path, "".join([f"{_NOBODYS_PID}\n", *lines[1:]]))

    def stop(self, *, fast: bool = True) -> bool:
        """Stop the server; True if it ran. Not ``fast`` means at once, without a checkpoint."""
        if (running := self.running()) is None:
            return False
        gentle = (signal.SIGINT, 60.0) if fast else (signal.SIGQUIT, 10.0)
        for number, patience_s in (gentle, (signal.SIGQUIT, 10.0), (signal.SIGKILL, 10.0)):
            if end(running.pid, number, patience_s, lambda: self.running() is not None):
                return True
            log.warning("PostgreSQL (process %d) ignored %s", running.pid, number.name)
        raise Unavailable(f"PostgreSQL (process {running.pid}) cannot be stopped")


def _read(path: Path, *, strip: bool = True) -> str | None:
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, NotADirectoryError):
        return None
    return text.strip() if strip else text
