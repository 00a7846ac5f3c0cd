"""Gives back the space of rows that have become blocks; readers and writers go on."""

from __future__ import annotations

import logging

from toolkit.catalog import Entry
from toolkit.drivers import Driver
from toolkit.errors import Busy, DatabaseError, SchemaError
from toolkit.partitions import Partition
from toolkit.statements import compose, name

_log = logging.getLogger("toolkit.reclaiming")
_LONGEST = 300.0  # seconds: others' old snapshots may stand in the way
_WORTH = 128 << 10  # bytes of an empty partition that are worth a vacuum


async def reclaim(driver: Driver, entry: Entry, partition: Partition, *, has_moved: bool) -> int:
    """Give back what a partition's rows no longer need, and return how many bytes that was.

    What old snapshots still see stays for the next time, and so does what somebody holds: that
    is logged. Needs the right to maintain the table.
    """
    table = name(entry.schema, partition.name)
    params = {"partition": table.as_string(None)}
    measure = compose("blocks/measure_partition")
    before = (await driver.fetch(measure, params))[0]
    if not has_moved and (partition.rows or before[1] < _WORTH):
        return 0
    try:
        for (dead,) in await driver.fetch(compose("blocks/list_dead_indexes"), params):
            drop = compose("blocks/drop_dead_index", index=name(entry.schema, dead))
            await driver.command(drop, timeout=_LONGEST)
        vacuum = compose("blocks/reclaim_rows", partition=table)
        await driver.command(vacuum, timeout=_LONGEST)
        if (await driver.fetch(measure, params))[0][0] == 0 and before[1] >= _WORTH:
            reindex = compose("blocks/reclaim_index", partition=table)
            await driver.command(reindex, timeout=_LONGEST)
    except (DatabaseError, SchemaError, Busy) as error:  # dropped meanwhile, too
        _log.warning("the space of %s was not given back: %s", partition.name, error)
    after = (await driver.fetch(measure, params))[0]
    return int(max(before[1] - after[1], 0))
