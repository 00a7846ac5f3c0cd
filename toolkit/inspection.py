"""What the server says of a dataset: its size, and how far its rollups have followed it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from toolkit.catalog import Entry
from toolkit.ddl import blocks_table
from toolkit.drivers import Driver
from toolkit.statements import compose, name


@dataclass(frozen=True, slots=True)
class DatasetStats:
    """A dataset as it stands on the server.

    ``rows`` is an estimate. ``bytes`` are those of the rows with their index, ``block_bytes``,
    ``rollup_bytes`` and ``log_bytes`` those of the blocks, the rollups and the change log.
    ``blocks`` hold ``block_points``; a point that was written again since is among the rows, too.
    ``unfollowed`` counts change-log
    rows that some rollup has yet to follow: reads of what they cover are right, only slower.
    ``refreshed_at`` is when the least recent rollup was refreshed; None: one never was, or
    there is none.
    """

    dataset: str
    series: int
    partitions: int
    rows: int
    bytes: int
    blocks: int
    block_points: int
    block_bytes: int
    rollup_bytes: int
    log_bytes: int
    unfollowed: int
    refreshed_at: datetime | None


async def describe(driver: Driver, entry: Entry) -> DatasetStats:
    """Return the figures of one dataset; reads its change log and the list of its blocks."""
    schema, dataset = entry.schema, entry.dataset
    points, log = name(schema, dataset.name), name(schema, f"{dataset.name}_log")
    blocks = name(schema, blocks_table(dataset.name))
    statement = compose(
        "catalog/describe_dataset",
        series=name(schema, "series"),
        rollup=name(schema, "rollup"),
        log=log,
        blocks=blocks,
    )
    params = {
        "dataset_id": entry.id,
        "points": points.as_string(None),
        "blocks": blocks.as_string(None),
        "log": log.as_string(None),
        "rollups": [name(schema, r.relation).as_string(None) for r in entry.rollups],
    }
    rows = await driver.fetch(statement, params)
    return DatasetStats(dataset.name, *rows[0])
