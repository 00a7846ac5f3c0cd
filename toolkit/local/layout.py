"""Where an instance of the local servers lives on disk, and what it remembers between runs."""

from __future__ import annotations

import json
import logging
import os
import re
import secrets
import shutil
import stat
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path

from toolkit.errors import ConfigError
from toolkit.local.account import Account
from toolkit.local.process import can_execute

log = logging.getLogger(__name__)

_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,40}")
# what goes into addresses and the servers' configurations as it is
_PASSWORD = re.compile(r"[A-Za-z0-9_-]+")
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
            for path, path_mode in ((self.home, mode), (self.logs, 0o700), (self.valkey, 0o700)):
                path.mkdir(exist_ok=True)
                path.chmod(path_mode)
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


def _password() -> str:
    return secrets.token_urlsafe(24)


class DamagedState(ConfigError):
    """The state cannot be read, by anybody; making the servers anew is the way out."""

    def __init__(self, path: Path) -> None:
        super().__init__(
            str(path),
            "",
            "damaged, and the passwords with it; `toolkit reset` makes the servers anew, "
            "without their data",
        )


@dataclass(frozen=True, slots=True)
class State:
    """What an instance keeps from run to run: its passwords, its ports and its binaries."""

    admin_password: str = field(default_factory=_password, repr=False)
    toolkit_password: str = field(default_factory=_password, repr=False)
    valkey_password: str = field(default_factory=_password, repr=False)
    postgres_port: int | None = None
    valkey_port: int | None = None
    pg_bin: str | None = None

    @classmethod
    def load(cls, path: Path) -> State | None:
        """Read the state; None where there is none yet."""
        try:
            data = path.read_bytes()
            if stat.S_IMODE(path.stat().st_mode) & 0o077:
                log.warning("%s was readable by others; made 0600", path)
                path.chmod(0o600)
        except FileNotFoundError:
            return None
        except IsADirectoryError as error:
            raise DamagedState(path) from error
        except PermissionError as error:
            raise ConfigError(
                str(path), "", f"{error.strerror}: these servers belong to another user"
            ) from error
        except OSError as error:
            raise ConfigError(
                str(path), "", f"{error.strerror}; name another folder with --root or TOOLKIT_HOME"
            ) from error
        try:
            return cls.from_mapping(json.loads(data.decode("utf-8")))
        except (ValueError, KeyError, TypeError, RecursionError):
            # not "from": what cannot be read may still hold a password
            raise DamagedState(path) from None

    @classmethod
    def from_mapping(cls, kept: Mapping[str, object]) -> State:
        """Return the state that ``kept`` is; ValueError, KeyError or TypeError if it is none.

        >>> State.from_mapping({**asdict(State()), "valkey_port": 0})
        Traceback (most recent call last):
        ValueError: valkey_port
        """
        found = {f.name: kept[f.name] for f in fields(cls)}
        for name, value in found.items():
            if name.endswith("_password"):
                is_sane = isinstance(value, str) and _PASSWORD.fullmatch(value) is not None
            elif name.endswith("_port"):
                is_sane = value is None or (type(value) is int and 1 <= value <= 65_535)
            else:
                is_sane = value is None or isinstance(value, str)
            if not is_sane:
                raise ValueError(name)
        return cls(**found)  # type: ignore[arg-type]  # just checked, field by field

    def save(self, path: Path) -> None:
        """Write the state, whole or not at all, readable by nobody else."""
        if path.is_dir() and not path.is_symlink():  # only where it is damaged, see load
            shutil.rmtree(path)
        scratch = path.with_suffix(".new")
        scratch.unlink(missing_ok=True)
        descriptor = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            if os.geteuid() == 0:  # root may be helping out an ordinary user: leave it readable
                owner = path.parent.stat()
                os.fchown(descriptor, owner.st_uid, owner.st_gid)
            json.dump(asdict(self), file, indent=2)
            file.flush()
            os.fsync(file.fileno())
        scratch.replace(path)

    def port_of(self, server: str) -> int | None:
        """The port "PostgreSQL" or "Valkey" had last."""
        return self.postgres_port if server == "PostgreSQL" else self.valkey_port

    def with_port(self, server: str, port: int) -> State:
        """This state with another port for "PostgreSQL" or "Valkey"."""
        if server == "PostgreSQL":
            return replace(self, postgres_port=port)
        return replace(self, valkey_port=port)
