"""The jobs there are, in the order in which they run."""

from __future__ import annotations

from toolkit_maintenance import (
    auditing,
    cleanup,
    compress,
    partitions,
    recompress,
    refresh,
    reindex,
    retention,
    vacuum,
    verify,
    warm,
)
from toolkit_maintenance.job import Job

JOBS: dict[str, Job] = {
    job.name: job
    for job in (
        partitions.JOB,  # first: without a partition, writes wait for it to be made
        refresh.JOB,  # before retention, which waits for what no rollup has followed
        auditing.JOB,
        retention.JOB,
        compress.JOB,
        recompress.JOB,
        vacuum.JOB,  # after those that leave dead rows
        reindex.JOB,
        verify.JOB,
        warm.JOB,
        cleanup.JOB,
    )
}
"""By name."""
