"""How a batch travels: the open places of the write statements, and their parameters."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
from psycopg.sql import SQL, Composable, Composed, Identifier

from toolkit.catalog import Entry
from toolkit.columns import NULL_BOOL, NULL_CODE, NULL_INT
from toolkit.ddl import STORED
from toolkit.ingest.frames import Batch
from toolkit.timegrid import to_datetime

STAGE = ("pg_temp", "toolkit_stage")


def parts(entry: Entry, is_small: bool, given: tuple[str, ...] | None) -> dict[str, Composable]:
    """Return what the write statements are made of; ``given`` are the columns an upsert sets."""
    dataset, schema = entry.dataset, entry.schema
    values = dataset.names
    changed = given or values
    key = [Identifier(k) for k in dataset.key]
    columns = [*key, *(Identifier(c) for c in values)]
    kinds = {"series_id": "integer", "ts": "timestamptz", "seq": "bigint"}
    types = {c: kinds.get(c) or STORED[dataset.column(c).base] for c in (*dataset.key, *values)}
    declared = [SQL("{} {}").format(Identifier(c), _own(t)) for c, t in types.items()]
    arrays = [SQL("%({})s::{}[]").format(_own(f"c_{c}"), _own(t)) for c, t in types.items()]
    unnested = SQL("(SELECT * FROM unnest({}) AS n ({}))").format(
        SQL(", ").join(arrays), SQL(", ").join(columns)
    )

    def each(before: str, names: Iterable[str]) -> Composed:
        return SQL(", ").join(Identifier(before, n) for n in names)

    def assign(before: str) -> Composed:
        pairs = [SQL("{0} = {1}").format(Identifier(c), Identifier(before, c)) for c in changed]
        return SQL(", ").join(pairs)

    return {
        "points": Identifier(schema, dataset.name),
        "log": Identifier(schema, f"{dataset.name}_log"),
        "series": Identifier(schema, "series"),
        "source": unnested if is_small else Identifier(*STAGE),
        "same_key": SQL(" AND ").join(
            SQL("t.{0} = s.{0}").format(Identifier(k)) for k in dataset.key
        ),
        "old": each("t", changed),
        "new": each("s", changed),
        "new_excluded": each("excluded", changed),
        "assignments": assign("s"),
        "excluded": assign("excluded"),
        "columns": SQL(", ").join(columns),
        "declared": SQL(", ").join(declared),
        "values": each("s", (*dataset.key, *values)),
        "key": each("s", dataset.key),
        "key_columns": SQL(", ").join(key),
    }


def _own(text: str) -> SQL:
    return SQL(text)


def bounds(batch: Batch) -> dict[str, Any]:
    """Return the range of time a batch lies in."""
    return {
        "start": to_datetime(int(batch.ts.min())),
        "end": to_datetime(int(batch.ts.max()) + 1),
    }


def arrays(batch: Batch, ids: npt.NDArray[np.int32]) -> dict[str, Any]:
    """Return a small batch as one array a column."""
    params: dict[str, Any] = {
        "c_series_id": ids[batch.series].tolist(),
        "c_ts": [to_datetime(t) for t in batch.ts.tolist()],
    }
    if batch.seq is not None:
        params["c_seq"] = batch.seq.tolist()
    for name, values in batch.values.items():
        params[f"c_{name}"] = listed(values, batch.categories.get(name))
    return params


def listed(values: npt.NDArray[Any], names: tuple[str, ...] | None) -> list[Any]:
    """Return a column in-band as Python values, NULL as None."""
    if names is not None:
        return [None if c == NULL_CODE else names[c] for c in values.tolist()]
    if values.dtype == np.float64:
        return [None if v != v else v for v in values.tolist()]
    if values.dtype == np.int8:
        return [None if v == NULL_BOOL else bool(v) for v in values.tolist()]
    return [None if v == NULL_INT else v for v in values.tolist()]
