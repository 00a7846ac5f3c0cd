"""Jobs of the tests' own, in the place of those there are."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from toolkit_maintenance import runner
from toolkit_maintenance.ground import Ground
from toolkit_maintenance.job import Act, Counts, Job, Skip

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
