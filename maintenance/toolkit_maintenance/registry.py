"""The jobs there are, in the order in which they run."""

from __future__ import annotations

from toolkit_maintenance import partitions, reindex, retention, vacuum
from toolkit_maintenance.job import Job

JOBS: dict[str, Job] = {
    job.name: job
    for job in (
        partitions.JOB,  # first: without a partition, writes wait for it to be made
        retention.JOB,
        vacuum.JOB,
        reindex.JOB,
    )
}
"""By name."""
