"""Maintenance jobs: each a small, idempotent run that returns a report of counts.

import toolkit, toolkit_maintenance

with toolkit.connect() as store:
    reports = toolkit_maintenance.maintain(store)  # what is due, as cron does
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from toolkit_maintenance.job import Act, Job, Report, Skip
    from toolkit_maintenance.records import JobState
    from toolkit_maintenance.runner import jobs, maintain, run

__all__ = ["Act", "Job", "JobState", "Report", "Skip", "jobs", "maintain", "run"]

_WHERE = {
    "Act": "job",
    "Job": "job",
    "JobState": "records",
    "Report": "job",
    "Skip": "job",
    "jobs": "runner",
    "maintain": "runner",
    "run": "runner",
}


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_WHERE[name]}"), name)
