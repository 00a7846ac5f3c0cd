"""The OS user the servers run as."""

from __future__ import annotations

import os
import pwd
from dataclasses import dataclass
from pathlib import Path

from toolkit.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Account:
    """An OS user; ``is_other`` says that programs must be started as somebody we are not."""

    name: str
    uid: int
    gid: int
    is_other: bool

    def give(self, path: Path) -> None:
        """Make ``path`` this user's."""
        if self.is_other:
            os.chown(path, self.uid, self.gid)

    def write(self, path: Path, text: str) -> None:
        """Write a file that only this user (and root) can read."""
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            os.fchmod(descriptor, 0o600)
            file.write(text)
        self.give(path)


def choose_account(data: Path) -> Account:
    """Ourselves; for root, who may not run PostgreSQL, the data's owner, postgres or nobody."""
    euid = os.geteuid()
    if euid != 0:
        return Account(_name(euid), euid, os.getegid(), is_other=False)
    candidates: list[pwd.struct_passwd] = []
    if data.exists() and (owner := data.stat().st_uid) != 0:
        candidates += [entry for entry in pwd.getpwall() if entry.pw_uid == owner]
    candidates += [entry for name in ("postgres", "nobody") if (entry := _entry(name))]
    if not candidates:
        raise ConfigError(
            "local servers",
            "",
            "PostgreSQL refuses to run as root and there is no user postgres or nobody; "
            "run as an ordinary user",
        )
    entry = candidates[0]
    return Account(entry.pw_name, entry.pw_uid, entry.pw_gid, is_other=True)


def _entry(name: str) -> pwd.struct_passwd | None:
    try:
        return pwd.getpwnam(name)
    except KeyError:
        return None


def _name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)
