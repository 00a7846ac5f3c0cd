"""Where an instance of the local servers lives on disk."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from toolkit.errors import ConfigError
from toolkit.local.account import Account
from toolkit.local.process import can_execute

FIRST = "pg1"
"""The node that every instance has."""
MAKING = "making-"
"""How the names of folders begin that are being made."""
_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,40}")
_ROOTS_HOME = Path("/var/lib/timeseries-toolkit")


def default_root(environ: Mapping[str, str], euid: int | None = None) -> Path:
    """The folder that holds the local servers when none is named.

    root's lies outside its home, which the user the servers run as usually may not enter.

    >>> default_root({"TOOLKIT_HOME": "/srv/tk"})
    PosixPath('/srv/tk')
    >>> default_root({"HOME": "/home/ana"}, euid=1000)
    PosixPath('/home/ana/.local/state/timeseries-toolkit')
    >>> default_root({"HOME": "/home/ana", "XDG_STATE_HOME": "/home/ana/state"}, euid=1000)
    PosixPath('/home/ana/state/timeseries-toolkit')
    >>> default_root({"HOME": "/root"}, euid=0)
    PosixPath('/var/lib/timeseries-toolkit')
    """
    if named := environ.get("TOOLKIT_HOME"):
        return Path(named)
    if (os.geteuid() if euid is None else euid) == 0:
        return _ROOTS_HOME
    # the XDG specification: a relative value is to be ignored
    state = environ.get("XDG_STATE_HOME", "")
    base = Path(state) if state.startswith("/") else Path(environ.get("HOME", "~")) / ".local/state"
    return base / "timeseries-toolkit"


@dataclass(frozen=True, slots=True)
class Layout:
    """The paths of one instance: ``<root>/<name>/``; ``<root>/.bin`` is shared by all."""

    root: Path
    name: str

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise ConfigError(
                "local servers",
                "name",
                f"{self.name!r} is no instance name; use a-z, 0-9, '-' and '_', at most 41",
            )

    @property
    def home(self) -> Path:
        return self.root / self.name

    @property
    def binaries(self) -> Path:
        return self.root / ".bin"

    @property
    def lock(self) -> Path:
        return self.home / "lock"

    @property
    def state(self) -> Path:
        return self.home / "state.json"

    @property
    def postgres(self) -> Path:
        return self.home / "postgres"

    def data(self, node: str) -> Path:
        """A node's data folder; the first one's is there without any replica, too."""
        return self.postgres if node == FIRST else self.home / node

    def all_data(self) -> list[Path]:
        """Every data folder that is there, whole or not, whatever is remembered of it."""
        found = (*self.home.glob("pg[0-9]*"), *self.home.glob(f"{MAKING}*"))
        return [self.postgres, *sorted(found)]

    def log(self, node: str) -> Path:
        """A node's log."""
        return self.logs / ("postgres.log" if node == FIRST else f"{node}.log")

    @property
    def passfile(self) -> Path:
        return self.home / "pgpass"

    @property
    def pgbouncer(self) -> Path:
        return self.home / "pgbouncer"

    @property
    def valkey(self) -> Path:
        return self.home / "valkey"

    @property
    def logs(self) -> Path:
        return self.home / "log"

    def prepare(self, account: Account) -> None:
        """Make the folders; those the servers write to belong to ``account``.

        Nothing that was there before is opened up: a root that the account may not enter is
        an error that says so.
        """
        mode = 0o711 if account.is_other else 0o700
        try:
            if not self.root.exists():
                self.root.mkdir(parents=True, exist_ok=True)
                self.root.chmod(mode)
            private = (self.logs, self.valkey, self.pgbouncer)
            for path in (self.home, *private):
                path.mkdir(exist_ok=True)
                path.chmod(mode if path == self.home else 0o700)
                if path != self.home:
                    account.give(path)
        except OSError as error:
            raise ConfigError(
                "local servers",
                "root",
                f"cannot use {self.root}: {error.strerror}; name another with --root or "
                "TOOLKIT_HOME",
            ) from error
        if not can_execute(self.home, account):
            raise ConfigError(
                "local servers",
                "root",
                f"the user {account.name}, as whom the servers run, may not enter {self.root}; "
                f"name another with --root or TOOLKIT_HOME, such as {_ROOTS_HOME}",
            )
