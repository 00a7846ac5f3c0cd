"""Gives back the space of rows that have become blocks; readers and writers go on."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from toolkit.catalog import Entry
from toolkit.ddl import blocks_table
from toolkit.drivers import Driver
from toolkit.errors import Busy, DatabaseError, SchemaError
from toolkit.partitions import Partition
from toolkit.statements import compose, name
from toolkit.timegrid import Span

_log = logging.getLogger("toolkit.reclaiming")
_LONGEST = 300.0  # seconds: others' old snapshots may stand in the way
WORTH = 128 << 10
"""Bytes of an empty partition that are worth a vacuum."""


def statements(schema: str, partition: str) -> tuple[bytes, bytes]:
    """Return what :func:`reclaim` sends; the second where the first has emptied the partition."""
    table = name(schema, partition)
    return (
        compose("blocks/reclaim_rows", partition=table),
        compose("blocks/reclaim_index", partition=table),
    )


async def reclaim(driver: Driver, entry: Entry, partition: Partition, *, has_moved: bool) -> int:
    """Give back what a partition's rows no longer need, and return how many bytes that was.

    What old snapshots still see stays for the next time, and so does what somebody holds: that
    is logged. Needs the right to maintain the table.
    """
    table = name(entry.schema, partition.name)
    params = {"partition": table.as_string(None)}
    vacuum, reindex = statements(entry.schema, partition.name)
    measure, alone = compose("blocks/measure_partition"), f"reclaim {entry.id} {partition.name}"
    before = (await driver.fetch(measure, params))[0]
    if not has_moved and before[1] < WORTH:
        return 0
    try:
        holds_rows = compose("blocks/holds_rows", partition=table)
        if not has_moved and (await driver.fetch(holds_rows))[0][0]:
            return 0
        left = {"schema": entry.schema, "table": params["partition"]}
        for row in await driver.fetch(compose("reindex/list_dead_indexes"), left):
            if not row[5]:
                continue
            drop = compose("reindex/drop_index", index=name(row[0], row[1]))
            await driver.command(drop, timeout=_LONGEST, alone=alone)
        if not await driver.command(vacuum, timeout=_LONGEST, alone=alone):
            return 0  # two at once would wait for each other
        if (await driver.fetch(measure, params))[0][0] == 0 and before[1] >= WORTH:
            await driver.command(reindex, timeout=_LONGEST, alone=alone)
    except (DatabaseError, SchemaError, Busy) as error:  # dropped meanwhile, too
        _log.warning(
            "the space of %s was not given back, the next run tries again: %s",
            partition.name,
            error,
        )
    after = (await driver.fetch(measure, params))[0]
    return int(max(before[1] - after[1], 0))


async def reclaim_blocks(driver: Driver, entry: Entry, spans: Sequence[Span]) -> None:
    """Give back what blocks took that are rows again, in the partitions that spans lie in."""
    parent = name(entry.schema, blocks_table(entry.dataset.name)).as_string(None)
    rows = await driver.fetch(compose("partition/list_partitions"), {"parent": parent})
    for row in rows:
        partition = Partition.from_row((row[0], row[1], row[2], row[3]))
        if any(s.start < partition.span.end and partition.span.start < s.end for s in spans):
            await reclaim(driver, entry, partition, has_moved=True)
