"""The write cases: a million rows with the change log on, against ADBC's ingest."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from toolkit.bench.ground import WRITTEN, Ground, bars
from toolkit.bench.measure import Contender, Result, Target, by_turns, compare
from toolkit.bench.peers import INGEST, TO_SQL

if TYPE_CHECKING:
    import pyarrow as pa

OURS = "store.write"


def insert(ground: Ground) -> Result:
    """Insert rows into an empty range."""
    return _against_ingest(ground, "write_insert", "insert", 0.95, with_to_sql=True)


def upsert_empty(ground: Ground) -> Result:
    """Upsert rows into an empty range."""
    return _against_ingest(ground, "write_upsert", "upsert", 0.9)


def upsert_existing(ground: Ground) -> Result:
    """Upsert rows whose keys all exist, with other values."""
    return _against_ingest(ground, "write_upsert_existing", "upsert", 0.5, is_over=True)


def _against_ingest(
    ground: Ground,
    case: str,
    mode: str,
    target: float,
    *,
    with_to_sql: bool = False,
    is_over: bool = False,
) -> Result:
    rows = _rows(ground, 0)
    total = rows.num_rows
    names = [f"W{n}" for n in range(ground.sizes.written_series)]
    ids = _ids(ground, names)
    for_ingest = _with_ids(rows, names, ids)
    changed = _rows(ground, 1) if is_over else rows

    def empty(turn: int) -> None:
        for table in ("written", "written_log"):
            ground.execute("TRUNCATE {table}", table=table)

    def fill(turn: int) -> None:
        empty(turn)
        ground.store.write(WRITTEN.name, rows, mode="insert")

    contenders = [
        Contender(
            OURS,
            lambda turn: ground.store.write(WRITTEN.name, changed, mode=mode),
            fill if is_over else empty,
        ),
        Contender(INGEST, lambda turn: ground.peers.ingest(for_ingest, WRITTEN.name), empty),
    ]
    targets = {INGEST: Target(target)}
    if with_to_sql:
        few = min(ground.sizes.to_sql_rows, total)
        frame = for_ingest.slice(0, few).to_pandas()
        contenders.append(Contender(TO_SQL, _to_sql(ground, frame), empty, scale=total / few))
        targets[TO_SQL] = Target(20.0)
    found = by_turns(contenders, ground.sizes.write_turns)
    empty(0)
    what = f"{total:,} rows, {mode}{' over existing ones' if is_over else ''}"
    return Result(case, what, total, found[OURS], compare(found[OURS], found, targets))


def _to_sql(ground: Ground, frame: pd.DataFrame) -> Callable[[int], object]:
    return lambda turn: ground.peers.to_sql(frame, WRITTEN.name)


def _rows(ground: Ground, variant: int) -> pa.Table:
    """Return bars of several series as an Arrow table with a dictionary of names."""
    import pyarrow as pa

    count = ground.sizes.written_series
    each = ground.sizes.written_rows // count
    names = pa.array([f"W{n}" for n in range(count)])
    made: list[dict[str, Any]] = [bars(each, 100 + count * variant + n) for n in range(count)]
    codes = pa.array(np.repeat(np.arange(count, dtype=np.int32), each))
    columns = {"series": pa.DictionaryArray.from_arrays(codes, names)}
    ts = np.concatenate([m["ts"] for m in made])
    columns["ts"] = pa.array(ts, pa.timestamp("us", "UTC"))
    for name in WRITTEN.names:
        columns[name] = pa.array(np.concatenate([m[name] for m in made]))
    return pa.table(columns)


def _ids(ground: Ground, names: list[str]) -> list[int]:
    """Make the series and the partitions, which the peers cannot, and return the ids."""
    first = _rows(ground, 0)
    ground.store.write(WRITTEN.name, first, mode="upsert")
    found = {s.name: s.id for s in ground.store.series(WRITTEN.name)}
    return [found[name] for name in names]


def _with_ids(rows: pa.Table, names: list[str], ids: list[int]) -> pa.Table:
    import pyarrow as pa

    codes = rows["series"].combine_chunks().indices.to_numpy()
    numbers = pa.array(np.array(ids, np.int32)[codes])
    return rows.set_column(0, "series_id", numbers)
