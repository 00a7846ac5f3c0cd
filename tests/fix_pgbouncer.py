"""A PgBouncer of a test's own before a given server, Debian's of two versions.

    def test_it(pgbouncer: MakePgBouncer, database: Database) -> None:
        bouncer = pgbouncer(database.dsn, database.admin_dsn, version="1.24")
        psycopg.connect(bouncer.dsn)

1.18 is Debian 12's, which knows no prepared statements; 1.24 is Debian 13's. Each is unpacked from
its Debian's packages and runs on that Debian's libraries, whatever this machine is.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Protocol
from urllib.parse import urlsplit

import psycopg
import pytest
from fix_servers import die_with_parent, give_up

from toolkit.local import ports
from toolkit.local.account import Account, choose_account
from toolkit.local.administration import Administrator
from toolkit.local.debian import Program
from toolkit.local.pgbouncer import ADMIN, configuration, userlist
from toolkit.local.pgbouncer import version as console_version

_numbers = count(1)
_PASSWORD = "console"
_SOURCE = (
    "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] {archive} {release} main\n"
)
# what either loads, and what its libraries load
_COMMON = (
    *("pgbouncer", "libc6", "libpam0g", "libsystemd0", "libaudit1", "libcap-ng0", "libcap2"),
    *("libgcc-s1", "libzstd1", "zlib1g", "liblzma5", "liblz4-1", "libgcrypt20", "libgpg-error0"),
)
_RELEASES = {
    "1.18": ("bookworm", (*_COMMON, "libevent-2.1-7", "libc-ares2", "libssl3")),
    "1.24": ("trixie", (*_COMMON, "libevent-2.1-7t64", "libcares2", "libssl3t64")),
}


class Programs:
    """The run's PgBouncers, each unpacked when first asked for."""

    def __init__(self, store: Path) -> None:
        self._store = store
        self._found: dict[str, Program] = {}

    def program(self, version: str) -> Program:
        if version not in self._found:
            try:
                self._found[version] = self._unpacked(version)
            except (OSError, subprocess.SubprocessError) as error:
                said = getattr(error, "stderr", b"").decode() or str(error)
                give_up(f"PgBouncer {version} could not be downloaded: {said}")
        return self._found[version]

    def _unpacked(self, version: str) -> Program:
        folder, starter = unpacked(self._store, f"pgbouncer-{version}", *_RELEASES[version])
        return Program(folder / "usr/sbin/pgbouncer", starter)


def unpacked(
    store: Path, name: str, release: str, packages: tuple[str, ...]
) -> tuple[Path, tuple[str, ...]]:
    """Return where packages of a Debian's are unpacked, and what starts their programs."""
    folder = store / name
    if not folder.exists():
        # it appears whole or not at all: another run may be here, too
        with tempfile.TemporaryDirectory(prefix=".unpack-", dir=store) as scratch:
            _unpack(Path(scratch), release, packages)
            with suppress(OSError):
                (Path(scratch) / "root").rename(folder)
    machine = f"{os.uname().machine}-linux-gnu"
    libraries = [folder / "lib" / machine, folder / "usr/lib" / machine]
    loader = next(found for path in libraries for found in path.glob("ld-linux-*.so.*"))
    # what it links against may be newer than ours: it starts through a loader of its own age
    return folder, (str(loader), "--library-path", ":".join(map(str, libraries)))


def _archive() -> str:
    """Return where this machine has Debian's packages from."""
    ask = ["apt-get", "indextargets", "--format", "$(SITE)"]
    said = subprocess.run(ask, check=True, capture_output=True, text=True, timeout=60).stdout
    for site in said.split():
        if site.rstrip("/").endswith("/debian"):
            return site
    raise OSError("there is no archive of Debian among apt's sources")


def _unpack(folder: Path, release: str, packages: tuple[str, ...]) -> None:
    for needed in ("root", "lists/partial", "cache/archives/partial"):
        (folder / needed).mkdir(parents=True)
    (folder / "sources.list").write_text(_SOURCE.format(archive=_archive(), release=release))
    options = {
        "Dir::Etc::sourcelist": folder / "sources.list",
        "Dir::Etc::sourceparts": "-",
        "Dir::State::lists": folder / "lists",
        "Dir::Cache": folder / "cache",
        "Acquire::http::Timeout": 10,
        "Acquire::Languages": "none",
    }
    words = [word for name, value in options.items() for word in ("-o", f"{name}={value}")]
    for command in (["update"], ["download", *packages]):
        subprocess.run(
            ["apt-get", "-qq", *words, *command],
            cwd=folder,
            check=True,
            capture_output=True,
            timeout=120,
        )
    for package in folder.glob("*.deb"):
        subprocess.run(["dpkg", "-x", package, "root"], cwd=folder, check=True)
    (folder / "root").chmod(0o755)


@dataclass(slots=True)
class Bouncer:
    """A PgBouncer; ``dsn`` leads through it, ``console_dsn`` to its console."""

    home: Path
    program: Program
    account: Account
    port: int
    dsn: str
    console_dsn: str
    users: str
    databases: dict[str, str]
    settings: dict[str, str]
    process: subprocess.Popen[bytes] | None = None

    @property
    def log(self) -> Path:
        return self.home / "log"

    def start(self) -> None:
        """Start it, on the same port as ever."""
        self.configure()
        identity = {"user": self.account.uid, "group": self.account.gid, "extra_groups": []}
        self.process = subprocess.Popen(  # type: ignore[call-overload]  # user, group: int, list
            [*self.program.command, "-q", self.home / "pgbouncer.ini"],
            cwd="/",
            preexec_fn=die_with_parent,
            **(identity if self.account.is_other else {}),
        )
        deadline = time.monotonic() + 20
        while console_version(self.port, _PASSWORD) is None:
            if self.process.poll() is not None or time.monotonic() > deadline:
                pytest.fail(f"no PgBouncer:\n{self.log.read_text()[-2000:]}")
            time.sleep(0.01)

    def stop(self) -> None:
        """End it, and the connections of its clients."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            (self.home / "pgbouncer.pid").unlink(missing_ok=True)
            self.process = None

    def configure(self, **settings: object) -> None:
        """Change settings; one that runs reads them at once."""
        self.settings |= {name: str(value) for name, value in settings.items()}
        text = configuration(self.home, self.log, self.port, self.databases)
        kept = [line for line in text.splitlines() if line.split(" ")[0] not in self.settings]
        lines = [*kept, *(f"{name} = {value}" for name, value in self.settings.items()), ""]
        self.account.write(self.home / "pgbouncer.ini", "\n".join(lines))
        self.account.write(self.home / "userlist.txt", self.users)
        if self.process is not None:
            self.process.send_signal(signal.SIGHUP)

    def console(self, command: str) -> list[dict[str, object]]:
        """What the console answers, such as to "SHOW POOLS"; a row is a dict."""
        with psycopg.connect(self.console_dsn, autocommit=True) as connection:
            cursor = connection.execute(command.encode())
            if cursor.description is None:
                return []
            names = [column.name for column in cursor.description]
            return [dict(zip(names, row, strict=True)) for row in cursor]

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Let it be there and say nothing."""
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP)
        try:
            os.waitid(os.P_PID, self.process.pid, os.WSTOPPED | os.WNOWAIT)
            yield
        finally:
            self.process.send_signal(signal.SIGCONT)


class MakePgBouncer(Protocol):
    """Starts a PgBouncer before the server of ``dsn``, whose superuser ``admin_dsn`` is.

    ``databases`` are more of them, as in pgbouncer.ini; ``settings`` are PgBouncer's own.
    """

    def __call__(
        self,
        dsn: str,
        admin_dsn: str,
        *,
        version: str = "1.18",
        databases: dict[str, str] | None = None,
        **settings: object,
    ) -> Bouncer: ...


@pytest.fixture(scope="session")
def programs_folder() -> Path:
    """Where programs are unpacked; what was downloaded stays for later runs."""
    store = Path(tempfile.gettempdir()) / f"timeseries-toolkit-tests-programs-{os.geteuid()}"
    store.mkdir(mode=0o755, exist_ok=True)
    if store.is_symlink() or store.stat().st_uid != os.geteuid():
        raise RuntimeError(f"{store} belongs to somebody else")
    return store


@pytest.fixture(scope="session")
def pgbouncer_programs(programs_folder: Path) -> Programs:
    """The PgBouncers that this machine can run."""
    return Programs(programs_folder)


@pytest.fixture
def pgbouncer(pgbouncer_programs: Programs, run_folder: Path) -> Iterator[MakePgBouncer]:
    """Make PgBouncers; all end with the test."""
    made: list[Bouncer] = []

    def make(
        dsn: str,
        admin_dsn: str,
        *,
        version: str = "1.18",
        databases: dict[str, str] | None = None,
        **settings: object,
    ) -> Bouncer:
        folder = run_folder / f"pgbouncer{next(_numbers)}"
        account = choose_account(folder)
        program = pgbouncer_programs.program(version)
        folder.mkdir(mode=0o700)
        account.give(folder)
        server, admin = urlsplit(dsn), urlsplit(admin_dsn)
        roles = [role for role in (server.username, admin.username) if role]
        assert admin.port is not None
        assert admin.password is not None
        secrets = Administrator(admin.port, admin.password).secrets(roles)
        port = ports.choose()
        place = f"127.0.0.1:{port}"
        login = server.netloc.rpartition("@")[0]
        bouncer = Bouncer(
            folder,
            program,
            account,
            port,
            server._replace(netloc=f"{login}@{place}").geturl(),
            f"postgresql://{ADMIN}:{_PASSWORD}@{place}/{ADMIN}?sslmode=disable",
            userlist({ADMIN: _PASSWORD, **secrets}),
            {**(databases or {}), "*": f"host=127.0.0.1 port={server.port}"},
            {name: str(value) for name, value in settings.items()},
        )
        made.append(bouncer)
        bouncer.start()
        return bouncer

    yield make
    for bouncer in made:
        bouncer.stop()
        shutil.rmtree(bouncer.home)
