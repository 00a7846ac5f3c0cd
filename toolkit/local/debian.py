"""Programs of Debian's that no wheel has: the system's, or unpacked from packages without root."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from toolkit.errors import Unavailable
from toolkit.local.account import Account
from toolkit.local.process import can_execute

_DOWNLOAD_S = 120.0
# what PgBouncer needs beyond what every Debian has; their names carry versions
_LIBRARIES = re.compile(r"Depends: (libevent-\S+|libc-?ares\S+)")


@dataclass(frozen=True, slots=True)
class Program:
    """A program, and the words before it that let it find the libraries that came with it."""

    path: Path
    starter: tuple[str, ...] = ()

    @property
    def command(self) -> list[str]:
        """The words it is run by."""
        return [*self.starter, str(self.path)]


def pgbouncer(account: Account, store: Path) -> Program:
    """PgBouncer: the system's, else unpacked once into ``store``."""
    if (found := shutil.which("pgbouncer", path=f"{os.environ['PATH']}:/usr/sbin")) is not None:
        return Program(Path(found).resolve())
    target = store / "pgbouncer"
    libraries = target / "usr/lib" / f"{os.uname().machine}-linux-gnu"
    starter = ("/usr/bin/env", f"LD_LIBRARY_PATH={libraries}")
    program = Program(target / "usr/sbin/pgbouncer", starter)
    if not program.path.exists():
        try:
            _unpack(target)
        except (OSError, subprocess.SubprocessError) as error:
            said = getattr(error, "stderr", None) or str(error)
            raise Unavailable(
                "there is no pgbouncer on the PATH or in /usr/sbin, and Debian's could not be "
                f"downloaded ({str(said).strip().splitlines()[-1]}); install it: "
                "apt-get install pgbouncer"
            ) from error
    if not can_execute(program.path, account):
        raise Unavailable(f"{account.name} cannot execute {program.path}; is it mounted noexec?")
    return program


def _unpack(target: Path) -> None:
    """Download PgBouncer's package and its libraries', and unpack them; all of it or nothing."""
    target.parent.mkdir(exist_ok=True)
    target.parent.chmod(0o755)
    scratch = Path(tempfile.mkdtemp(prefix=".unpack-", dir=target.parent))
    try:
        scratch.chmod(0o755)
        libraries = _LIBRARIES.findall(_run(["apt-cache", "depends", "pgbouncer"], scratch))
        _run(["apt-get", "download", "-qq", "pgbouncer", *libraries], scratch)
        for package in scratch.glob("*.deb"):
            _run(["dpkg", "-x", str(package), "."], scratch)
            package.unlink()
        if not (scratch / "usr/sbin/pgbouncer").exists():
            raise FileNotFoundError("the package has no usr/sbin/pgbouncer")
        scratch.rename(target)
    except OSError:
        # another process may have been faster: a folder only ever appears whole
        if not target.exists():
            raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _run(command: Sequence[str], folder: Path) -> str:
    return subprocess.run(  # noqa: S603 - our own command lists
        [*command, *(["-o", "Acquire::http::Timeout=10"] if command[0] == "apt-get" else [])],
        cwd=folder,
        check=True,
        capture_output=True,
        text=True,
        timeout=_DOWNLOAD_S,
    ).stdout
