"""Fixtures: real servers for the whole run, and a fresh database for each test that asks.

`TOOLKIT_TEST_PG` says on which PostgreSQL: ``18`` (the wheel's; default), ``15`` or another major
version (the system's, in /usr/lib/postgresql), ``both``; without one that it names tests fail.
With `TOOLKIT_TEST_REQUIRE_ALL=1`, as in CI, it is both, and they fail where they would be skipped.
"""

from __future__ import annotations

import ctypes
import fcntl
import hashlib
import hmac
import os
import shutil
import signal
import tempfile
from base64 import b64encode
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import NoReturn
from urllib.parse import urlsplit

import psycopg
import pytest
import redis
from psycopg import sql

from toolkit.local import Endpoints, LocalServers

REQUIRE_ALL = os.environ.get("TOOLKIT_TEST_REQUIRE_ALL") == "1"
WHEEL = "18"
SYSTEM = Path("/usr/lib/postgresql")
PROJECT = Path(__file__).resolve().parent.parent
# what tests write may be lost with the machine; and no answer may lean on the server's time zone
SETTINGS = {
    "fsync": "off",
    "synchronous_commit": "off",
    "full_page_writes": "off",
    "max_wal_size": "512MB",
    "timezone": "America/New_York",
}
TEMPLATE = "toolkit_template"
_LEFT = 3  # databases that wait to be dropped
_SHM = Path("/dev/shm")
_SHM_BYTES = 4 << 30
_PR_SET_PDEATHSIG = 1


def system_versions() -> list[str]:
    """The system's PostgreSQL versions that the toolkit supports, oldest first.

    A 15 that is missing is still named, so that asking for it fails instead of passing unseen.
    """
    found = {int(p.parent.parent.name) for p in SYSTEM.glob("[0-9]*/bin/postgres")}
    return [str(v) for v in sorted(v for v in found if v >= 15 and str(v) != WHEEL)] or ["15"]


def chosen_versions() -> list[str]:
    """The server versions this run tests on."""
    asked = os.environ.get("TOOLKIT_TEST_PG") or ("both" if REQUIRE_ALL else WHEEL)
    return [WHEEL, system_versions()[0]] if asked == "both" else [asked]


def give_up(reason: str) -> NoReturn:
    """Skip for want of something, or fail where nothing may be skipped."""
    if REQUIRE_ALL:
        pytest.fail(reason)
    pytest.skip(reason)


def system_bin(version: str) -> Path:
    """The folder of a system PostgreSQL; to miss one that was asked for by name is a failure."""
    folder = SYSTEM / version / "bin"
    if (folder / "postgres").exists():
        return folder
    reason = f"no PostgreSQL {version} in {SYSTEM} (package postgresql-{version})"
    if version in chosen_versions():
        pytest.fail(reason)
    give_up(reason)


# -- the folder of a run ------------------------------------------------------------------------


def _parent() -> Path:
    """Where runs keep their servers: in memory if there is room (a clone takes 12 ms, not 150).

    Not below pytest's tmp_path: it is 0700, closed to the user that root starts servers as.
    """
    base = Path(tempfile.gettempdir())
    if _SHM.is_dir() and os.access(_SHM, os.W_OK):
        room = os.statvfs(_SHM)
        if room.f_bavail * room.f_frsize >= _SHM_BYTES:
            base = _SHM
    parent = base / f"timeseries-toolkit-tests-{os.geteuid()}"
    parent.mkdir(mode=0o711, exist_ok=True)
    if parent.is_symlink() or parent.stat().st_uid != os.geteuid():
        raise RuntimeError(f"{parent} belongs to somebody else")
    return parent


def sweep(folder: Path) -> None:
    """Stop every server whose instance lies below ``folder``, then delete it all."""
    for state in sorted(folder.rglob("state.json")):
        LocalServers(state.parent.parent, name=state.parent.name).reset()
    if (binaries := folder / ".bin").is_symlink():
        shutil.rmtree(binaries.resolve(), ignore_errors=True)
    shutil.rmtree(folder)


def sweep_dead_runs(parent: Path) -> None:
    """Sweep the runs below ``parent`` whose process is gone."""
    for folder in parent.glob("run-*"):
        descriptor = os.open(folder / "owner", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            # the kernel drops the lock with its owner, however that ended
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            sweep(folder)
        except BlockingIOError:
            pass
        finally:
            os.close(descriptor)


def begin_run(parent: Path) -> tuple[Path, int]:
    """Make this process's folder, and lock it for as long as the descriptor is open."""
    folder = parent / f"run-{os.getpid()}"
    folder.mkdir(mode=0o711)
    descriptor = os.open(folder / "owner", os.O_RDWR | os.O_CREAT, 0o600)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    return folder, descriptor


@pytest.fixture(scope="session")
def run_folder() -> Iterator[Path]:
    """A folder for this run's servers that any user may enter; the next run clears leftovers."""
    parent = _parent()
    sweep_dead_runs(parent)
    folder, descriptor = begin_run(parent)
    # copied programs, if any, go to disk: /dev/shm may be mounted noexec
    binaries = Path(tempfile.mkdtemp(prefix="timeseries-toolkit-tests-bin-"))
    binaries.chmod(0o711)
    (folder / ".bin").symlink_to(binaries)
    try:
        yield folder
    finally:
        sweep(folder)
        os.close(descriptor)


def die_with_parent() -> None:
    """In a child, before it becomes a program: let it be killed when we are gone."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


# -- servers and databases ----------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Database:
    """A database of its own for one test; ``dsn`` is the role toolkit, ``admin_dsn`` may all."""

    name: str
    dsn: str
    admin_dsn: str
    version: str


def log_in_quickly(endpoints: Endpoints) -> None:
    """Let the passwords of both roles be hashed once, not 4,096 times: a client takes 3 ms less.

    scram_iterations would do for what is made from then on, and only from PostgreSQL 16 on.
    """
    with psycopg.connect(endpoints.admin_dsn) as admin:
        for dsn in (endpoints.dsn, endpoints.admin_dsn):
            parts = urlsplit(dsn)
            assert parts.username is not None
            assert parts.password is not None
            role = sql.Identifier(parts.username)
            secret = sql.Literal(_secret(parts.password))
            admin.execute(sql.SQL("ALTER ROLE {} PASSWORD {}").format(role, secret))


def _secret(password: str) -> str:
    """What PostgreSQL keeps of a password (RFC 5803), after one iteration."""
    salt = os.urandom(16)
    salted = hashlib.pbkdf2_hmac("sha256", password.encode(), salt, 1)
    stored = hashlib.sha256(hmac.digest(salted, b"Client Key", "sha256")).digest()
    parts = (salt, stored, hmac.digest(salted, b"Server Key", "sha256"))
    encoded = [b64encode(part).decode() for part in parts]
    return "SCRAM-SHA-256$1:{}${}:{}".format(*encoded)


def _in_database(dsn: str, name: str) -> str:
    return urlsplit(dsn)._replace(path=f"/{name}").geturl()


@dataclass(slots=True)
class Server:
    """A running PostgreSQL of one version and the databases on it."""

    version: str
    local: LocalServers
    endpoints: Endpoints
    admin: psycopg.Connection
    _numbers: Iterator[int] = field(default_factory=lambda: count(1))
    _has_template: bool = False
    _left: deque[Database] = field(default_factory=deque)

    def template(self) -> str:
        """The name of a database that has every migration; made when first asked for."""
        if not self._has_template:
            from toolkit.migrate import upgrade

            self._clone("toolkit", TEMPLATE)
            upgrade(_in_database(self.endpoints.dsn, TEMPLATE))
            self._has_template = True
        return TEMPLATE

    def database(self, template: str) -> Database:
        """A new database, the same as ``template``."""
        name = f"t_{next(self._numbers)}"
        self._clone(template, name)
        return Database(
            name,
            _in_database(self.endpoints.dsn, name),
            _in_database(self.endpoints.admin_dsn, name),
            self.version,
        )

    def _clone(self, template: str, name: str) -> None:
        self.admin.execute(
            sql.SQL("CREATE DATABASE {} TEMPLATE {} STRATEGY FILE_COPY").format(
                sql.Identifier(name), sql.Identifier(template)
            )
        )

    def drop(self, database: Database) -> None:
        """Drop the database, whoever is still connected, when a few more have been left.

        At once it takes 110 ms instead of 15: the server sleeps while a backend is about to end.
        """
        self._left.append(database)
        if len(self._left) > _LEFT:
            name = sql.Identifier(self._left.popleft().name)
            self.admin.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(name))


class Fleet:
    """The run's servers, each started when first asked for."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._servers: dict[str, Server] = {}

    def server(self, version: str) -> Server:
        if version not in self._servers:
            pg_bin = None if version == WHEEL else system_bin(version)
            local = LocalServers(
                self._folder, name=f"pg{version}", pg_bin=pg_bin, settings=SETTINGS
            )
            endpoints = local.up()
            log_in_quickly(endpoints)
            admin = psycopg.connect(endpoints.admin_dsn, autocommit=True)
            self._servers[version] = Server(version, local, endpoints, admin)
        return self._servers[version]

    def any(self) -> Server:
        """A server that runs already, else the default one."""
        return next(iter(self._servers.values()), None) or self.server(chosen_versions()[0])

    def close(self) -> None:
        for server in self._servers.values():
            server.admin.close()
            server.local.reset()


@pytest.fixture(scope="session")
def fleet(run_folder: Path) -> Iterator[Fleet]:
    """All servers of this run."""
    fleet = Fleet(run_folder)
    yield fleet
    fleet.close()


ON_ONE_VERSION = pytest.mark.parametrize(
    "server_version", chosen_versions()[:1], indirect=True, ids="pg{}".format, scope="session"
)
"""For what is slow and not about SQL: one version of PostgreSQL is enough."""


def share(number: int, version: str) -> int:
    """Return how many of so many examples to look at: on an older server, for its SQL, a tenth."""
    return max(10, number if version == WHEEL else number // 10)


@pytest.fixture(scope="session", params=chosen_versions(), ids=lambda version: f"pg{version}")
def server_version(request: pytest.FixtureRequest) -> str:
    """The major version under test; whatever uses a database runs once for each."""
    return str(request.param)


@pytest.fixture(scope="session")
def servers(fleet: Fleet, server_version: str) -> LocalServers:
    """The local servers under test, up."""
    return fleet.server(server_version).local


@pytest.fixture(scope="session")
def template(fleet: Fleet, server_version: str) -> str:
    """The name of a migrated database on the server under test; nobody may stay connected."""
    return fleet.server(server_version).template()


@pytest.fixture
def database(fleet: Fleet, server_version: str, template: str) -> Iterator[Database]:
    """A migrated database of the test's own; the role toolkit owns its schema toolkit."""
    server = fleet.server(server_version)
    database = server.database(template)
    yield database
    server.drop(database)


@pytest.fixture
def empty_database(fleet: Fleet, server_version: str) -> Iterator[Database]:
    """The same without any migration: an empty schema toolkit, owned by the role toolkit."""
    server = fleet.server(server_version)
    database = server.database("toolkit")
    yield database
    server.drop(database)


@pytest.fixture
def redis_url(fleet: Fleet) -> str:
    """A Valkey with nothing in it."""
    url = fleet.any().endpoints.redis_url
    with redis.Redis.from_url(url) as client:
        client.flushall()
    return url


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real market data, beside the project's own."""
    folder = PROJECT.parent / "shared" / "data"
    if not folder.is_dir():
        give_up("no ../shared/data beside the project: the real market data is missing")
    return folder
