"""Jobs of the tests' own, in the place of those there are."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import psycopg
import pytest
from fix_servers import Database
from psycopg.conninfo import make_conninfo

from toolkit.config import Settings, load_settings
from toolkit.options import MaintenanceOptions
from toolkit_maintenance import runner
from toolkit_maintenance.ground import Ground
from toolkit_maintenance.job import Act, Counts, Job, Skip

RUNS = "SELECT job, status, counts, said, targets FROM toolkit.job_run ORDER BY id"
WAITS = "SELECT count(*) FROM pg_locks WHERE NOT granted AND relation = %s::regclass"
AGO = "UPDATE toolkit.job_run SET started_at = started_at - %s::interval"

Register = Callable[..., None]
Doing = Callable[[Ground], object] | str | Skip
"""What an act does, as a function or a statement; or what is skipped."""


@pytest.fixture
def register(monkeypatch: pytest.MonkeyPatch) -> Register:
    """Puts jobs in the place of those there are; they go by names that settings know."""

    def register(*jobs: Job) -> None:
        monkeypatch.setattr(runner, "JOBS", {job.name: job for job in jobs})

    return register


def job(name: str, *does: Doing) -> Job:
    """Return a job that has an act for each of what it does."""

    def plan(ground: Ground) -> Iterator[Act | Skip]:
        for number, doing in enumerate(does, 1):
            if isinstance(doing, Skip):
                yield doing
                continue

            def do(doing: Callable[[Ground], object] | str = doing) -> Counts:
                if isinstance(doing, str):
                    ground.direct.execute(doing.encode())
                else:
                    doing(ground)
                return {"acts": 1}

            yield Act(f"act {number}", (str(doing),), "none", do, 8192, "so it is")

    return Job(name, "a test's own", plan)


def settings(dsn: str, **options: object) -> Settings:
    """Return those of a store with a maintenance of its own."""
    return replace(load_settings(dsn), maintenance=MaintenanceOptions(**options))


@pytest.fixture
def stranger(database: Database) -> Iterator[tuple[str, str]]:
    """A role that may look and have its runs recorded, and nothing else; and a conninfo of it."""
    role = f"stranger_{database.name}"
    with psycopg.connect(database.admin_dsn, autocommit=True) as admin:
        admin.execute(f"CREATE ROLE {role} LOGIN PASSWORD 'x'".encode())
        admin.execute(f"GRANT USAGE ON SCHEMA toolkit TO {role}".encode())
        admin.execute(f"GRANT SELECT ON ALL TABLES IN SCHEMA toolkit TO {role}".encode())
        admin.execute(f"GRANT INSERT, UPDATE ON toolkit.job_run TO {role}".encode())
        yield role, make_conninfo(database.dsn, user=role, password="x")
        admin.execute(f"DROP OWNED BY {role}; DROP ROLE {role}".encode())
