"""Fixtures for the tests of the local servers themselves: instances to break at will."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import psycopg
import pytest
from fix_servers import SETTINGS

from toolkit.local import Endpoints, LocalServers

_numbers = count(1)


class Instances:
    """Makes instances of the test's own, and deletes them when it ends."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._made: list[LocalServers] = []

    def __call__(self, **options: object) -> LocalServers:
        options = {"settings": SETTINGS, "name": f"own{next(_numbers)}"} | options
        self._made.append(LocalServers(self.root, **options))  # type: ignore[arg-type]
        return self._made[-1]

    def close(self) -> None:
        for servers in self._made:
            servers.reset()


@pytest.fixture
def make_servers(run_folder: Path) -> Iterator[Instances]:
    instances = Instances(run_folder)
    yield instances
    instances.close()


@pytest.fixture(scope="session")
def shared_servers(run_folder: Path) -> Iterator[LocalServers]:
    """One instance for all tests that leave it as it was."""
    instances = Instances(run_folder)
    servers = instances()
    servers.up()
    yield servers
    instances.close()


def ask(dsn: str, statement: str) -> object:
    with psycopg.connect(dsn) as connection:
        row = connection.execute(statement).fetchone()
    assert row is not None
    return row[0]


def keep_a_row(endpoints: Endpoints) -> None:
    with psycopg.connect(endpoints.dsn) as connection:
        connection.execute("CREATE TABLE toolkit.kept AS SELECT 42 AS answer")


def has_the_row(endpoints: Endpoints) -> bool:
    return ask(endpoints.dsn, "SELECT answer FROM toolkit.kept") == 42


def pids(servers: LocalServers) -> tuple[int, int]:
    status = servers.status()
    assert status.postgres.pid is not None
    assert status.valkey.pid is not None
    return status.postgres.pid, status.valkey.pid


def python(code: str, *arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


UP = """
import sys
from pathlib import Path
from toolkit.local import LocalServers
print(LocalServers(Path(sys.argv[1]), name=sys.argv[2], settings={"fsync": "off"}).up().dsn)
"""
