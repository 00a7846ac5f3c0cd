"""What the doctor found, and who may mend it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from fix_servers import Database

from toolkit_maintenance.doctor import Examination, Finding


@pytest.fixture
def superuser(database: Database) -> Iterator[psycopg.Connection[Any]]:
    with psycopg.connect(database.admin_dsn, autocommit=True) as connection:
        connection.execute("SET search_path = toolkit")
        yield connection


def bad(seen: Examination) -> dict[str, Finding]:
    return {f.id: f for f in seen.findings if f.is_bad}


def mend(connection: psycopg.Connection[Any], finding: Finding) -> None:
    """Run what a finding says, as it stands."""
    for statement in finding.fix:
        connection.execute(statement.encode())
