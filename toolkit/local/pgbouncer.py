"""One PgBouncer before the local PostgreSQL servers."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from toolkit.errors import Unavailable
from toolkit.local.account import Account
from toolkit.local.debian import Program
from toolkit.local.journal import rotate, size_of, tail
from toolkit.local.process import end, run, runs

ADMIN = "pgbouncer"
"""The user, and the name, of the administration console."""
_START_S = 20.0
_POLL_S = 0.01


def configuration(home: Path, log: Path, port: int, databases: Mapping[str, str]) -> str:
    """The text of pgbouncer.ini; ``databases`` are connection strings by clients' names.

    >>> text = configuration(Path("/h"), Path("/l"), 6432, {"shop": "host=127.0.0.1 port=5432"})
    >>> print(*text.splitlines()[:4], sep="\\n")
    ; written at every start
    [databases]
    shop = host=127.0.0.1 port=5432
    [pgbouncer]
    """
    settings = {
        "listen_addr": "127.0.0.1",
        "listen_port": str(port),
        "unix_socket_dir": "",
        "auth_type": "scram-sha-256",
        "auth_file": str(home / "userlist.txt"),
        "admin_users": ADMIN,
        "pool_mode": "transaction",
        "max_client_conn": "1000",
        "default_pool_size": "20",
        # asyncpg and JDBC send it, and it changes nothing here
        "ignore_startup_parameters": "extra_float_digits",
        "server_tls_sslmode": "disable",
        # the default, 15 s, would be 15 s of errors after each blink of a server
        "server_login_retry": "1",
        "logfile": str(log),
        "pidfile": str(home / "pgbouncer.pid"),
    }
    lines = [f"{name} = {value}" for name, value in databases.items()]
    lines += ["[pgbouncer]", *(f"{name} = {value}" for name, value in settings.items()), ""]
    return "\n".join(["; written at every start", "[databases]", *lines])


def userlist(secrets: Mapping[str, str]) -> str:
    """The text of the auth_file: SCRAM secrets as the server has them, or passwords.

    >>> userlist({"ana": 'a"b'})
    '"ana" "a""b"\\n'
    """

    def quoted(text: str) -> str:
        return '"{}"'.format(text.replace('"', '""'))

    return "".join(f"{quoted(role)} {quoted(secret)}\n" for role, secret in secrets.items())


@dataclass(frozen=True, slots=True)
class PgBouncer:
    """A PgBouncer by its folder; holds no state of its own, so it may be shared freely."""

    home: Path
    log: Path

    @property
    def _conf(self) -> Path:
        return self.home / "pgbouncer.ini"

    @property
    def _users(self) -> Path:
        return self.home / "userlist.txt"

    def running(self) -> int | None:
        """The live process's pid; a pid that is now another program's is not it."""
        try:
            text = (self.home / "pgbouncer.pid").read_text(encoding="ascii", errors="replace")
        except (FileNotFoundError, NotADirectoryError):
            return None
        pid = int(text) if text.strip().isdigit() else 0
        return pid if pid and self._is_ours(pid) else None

    def _is_ours(self, pid: int) -> bool:
        return runs(pid, "pgbouncer", self._conf)

    def has_configuration(self, text: str, users: str | None = None) -> bool:
        """Whether it was told just this; without ``users``, whoever may log in."""
        try:
            told = (self._conf.read_text("utf-8"), self._users.read_text("utf-8"))
        except FileNotFoundError:
            return False
        return told == (text, told[1] if users is None else users)

    def configure(self, account: Account, text: str, users: str) -> None:
        """Write the files; a process that runs reads them again."""
        account.write(self._conf, text)
        account.write(self._users, users)
        if (pid := self.running()) is not None:
            os.kill(pid, signal.SIGHUP)

    def start(self, program: Program, account: Account, port: int, password: str) -> None:
        """Start it as configured for ``port``, and wait until its console answers."""
        self.stop()
        (self.home / "pgbouncer.pid").unlink(missing_ok=True)
        rotate(self.log)
        before = size_of(self.log)
        outcome = run([*program.command, "-d", self._conf], account, timeout_s=_START_S)
        deadline = time.monotonic() + _START_S
        while outcome.code == 0 and time.monotonic() < deadline:
            if version(port, password) is not None:
                return
            if self.running() is None and "process up" in tail(self.log, before):
                break  # it came up and is gone again
            time.sleep(_POLL_S)
        raise Unavailable(
            f"PgBouncer did not start:\n{tail(self.log, before) or outcome.text}\n"
            f"(its log: {self.log})"
        )

    def stop(self) -> bool:
        """Stop it, and with it the connections of its clients; True if it ran."""
        if (pid := self.running()) is None:
            return False
        # SIGINT would wait for its clients
        for number, patience_s in ((signal.SIGTERM, 5.0), (signal.SIGKILL, 5.0)):
            if end(pid, number, patience_s, lambda: self._is_ours(pid)):
                return True
        raise Unavailable(f"PgBouncer (process {pid}) cannot be stopped")


def version(port: int, password: str, timeout_s: int = 2) -> str | None:
    """The version of the PgBouncer whose console takes this password; None where none does."""
    import psycopg  # here: slow to import

    try:
        with psycopg.connect(
            host="127.0.0.1",
            hostaddr="127.0.0.1",
            port=port,
            user=ADMIN,
            password=password,
            dbname=ADMIN,
            sslmode="disable",
            target_session_attrs="any",
            connect_timeout=timeout_s,
            autocommit=True,  # the console knows no BEGIN
        ) as connection:
            row = connection.execute("SHOW VERSION").fetchone()
    except psycopg.Error:
        return None
    return str(row[0]).removeprefix("PgBouncer ") if row else None
