"""Points to compress, of every type, and every way to ask for them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import psycopg
from fix_servers import Database
from fix_stores import READINGS, create

from toolkit.columns import Columns
from toolkit.dataset import CANDLES, TRADES, Dataset
from toolkit.errors import QueryError

START, END = "2024-01-20T00:00Z", "2024-02-04T00:00Z"
MIDDLE = "2024-02-01T00:00Z"  # where a partition of candles and readings ends
CLOSED = "2024-03-01T00:00Z"  # all their partitions are older
DATASETS = (CANDLES, TRADES, READINGS)
_ROWS = {"candles": 20_000, "trades": 6_000, "readings": 4_000}


def frame(dataset: Dataset, count: int, seed: int = 1) -> dict[str, Any]:
    """Points from START on, regular or with ties; sums of them are exact in any order."""
    random = np.random.default_rng(seed)
    start = np.datetime64(START[:16], "us")
    if dataset.name == "candles":
        ts = start + np.arange(count) * np.timedelta64(1, "m")
        names = dataset.names
        return {"ts": ts, **{n: random.integers(40, 4_000, count) * 0.75 for n in names}}
    apart = np.sort(random.integers(0, 14 * 86_400, count // 2)).repeat(2)
    ts = start + apart[:count] * np.timedelta64(1, "s")
    key = {"ts": ts, "seq": np.arange(count) - 5}
    moods = np.array(["buy", "sell", "höld", None], object)[random.integers(0, 4, count)]
    if dataset.name == "trades":
        price, size = random.integers(1, 900, count) * 0.25, random.integers(1, 99, count) * 1.0
        return {**key, "price": price, "size": size, "side": moods}
    level = random.integers(-90, 90, count) * 0.5
    level[random.random(count) < 0.2] = np.nan
    hits = [None if n % 7 == 0 else int(n) - 3_000 for n in random.integers(0, 9_000, count)]
    hits[3] = 2**33
    return {
        **key,
        "level": level,
        "hits": hits,
        "is_open": [None if n == 2 else bool(n) for n in random.integers(0, 3, count)],
        "mood": moods,
        "cost": [None if n == 0 else n * 2.5 for n in random.integers(0, 80, count).tolist()],
    }


def fill(store: Any, database: Database, *datasets: Dataset) -> None:
    """Store two series of each dataset, one of them sparse, and bring the rollups up to now."""
    if READINGS in datasets:
        create(database, READINGS)
    for dataset in datasets:
        rows = _ROWS[dataset.name]
        store.write(dataset.name, frame(dataset, rows), series="A")
        sparse = {n: v[::50] for n, v in frame(dataset, rows, 2).items()}
        store.write(dataset.name, sparse, series="B")
        store.label(dataset.name, "A", {"venue": "x"})
        store.label(dataset.name, "B", {"venue": "x", "kind": "sparse"})
        store.refresh(dataset.name)


def questions(dataset: Dataset) -> list[dict[str, Any]]:
    """What read can be asked, over the whole range or a part that cuts blocks."""
    column = dataset.names[0]
    native: list[dict[str, Any]] = [
        {},
        {"columns": [column]},
        {"descending": True},
        {"limit": 7},
        {"limit": 300, "descending": True},
        {"where": {column: (">", 30)}},
        {"where": {column: ("<", 90)}, "limit": 20, "descending": True},
        {"points": 60},
        {"labels": {"kind": "sparse"}},
    ]
    for name in ("side", "mood"):
        if name in dataset.names:
            native += [{"where": {name: "buy"}}, {"where": {name: (">=", "h")}}]
            native += [{"where": {name: ("is null", None)}, "columns": [column]}]
    steps: list[dict[str, Any]] = [
        {"step": "1h"},
        {"step": "3h", "agg": {column: ["max", "count"]}},
        {"step": "1d", "tz": "Europe/Berlin"},
        {"step": "1w", "tz": "Asia/Kathmandu", "descending": True},
        {"step": "1M"},
        {"step": "1h", "group_by": "venue"},
        {"step": "1h", "where": {column: (">", 30)}},
        {"step": "1h", "limit": 5},
    ]
    roads = ("direct", "aggregated", "downsampled", "auto")
    return [*native, *({**s, "strategy": r} for s in steps for r in roads), {"step": "auto"}]


def snapshot(cols: Columns) -> Mapping[str, Any]:
    """An answer down to its bits; codes of categories by what they mean."""
    said: dict[str, Any] = {
        "series": [cols.names[code] for code in cols.series.tolist()],
        "ts": cols.instants.tolist(),
        "seq": None if cols.seq is None else cols.seq.tolist(),
    }
    for name in cols:
        values = cols.raw(name)
        said[name] = values.tobytes()
        if cols.types[name] == "category":
            known = (*cols.categories[name], None)
            said[name] = [known[code] for code in values.tolist()]
    return said


def answers(store: Any, dataset: Dataset) -> list[tuple[Any, Mapping[str, Any]]]:
    """Everything that can be asked of the points, with what was asked."""
    found: list[tuple[Any, Any]] = []
    for start, end in ((START, END), ("2024-01-25T07:11:13Z", "2024-02-02T23:00:07Z")):
        for asked in questions(dataset):
            series = None if "labels" in asked or "group_by" in asked else ["B", "A"]
            try:
                cols = store.read(dataset.name, series, start, end, **asked)
            except QueryError as error:
                if "cannot answer" not in str(error):  # what the ladder cannot, before and after
                    raise
                continue
            found.append(((start, asked), snapshot(cols)))
    for asked in ({}, {"n": 5}, {"n": 900}, {"n": 3, "step": "1h"}):
        found.append((("latest", asked), snapshot(store.latest(dataset.name, **asked))))
    for rows in (1_000, 70_000):
        pieces = list(store.stream(dataset.name, ["A", "B"], START, END, rows=rows))
        assert max(map(len, pieces)) <= rows
        found.append((("stream", rows), snapshot(Columns.concat(pieces))))
    return found


def blocks_of(sql: psycopg.Connection, dataset: str) -> int:
    """How many blocks there are."""
    row = sql.execute(f"SELECT count(*) FROM {dataset}_blocks").fetchone()
    assert row is not None
    return int(row[0])


def rows_of(sql: psycopg.Connection, dataset: str) -> int:
    """How many points are rows."""
    row = sql.execute(f"SELECT count(*) FROM {dataset}").fetchone()
    assert row is not None
    return int(row[0])


def rows_and_blocks(dsn: str) -> tuple[int, int]:
    """How many points of candles are rows, and how many lie in blocks."""
    with psycopg.connect(dsn) as sql:
        found = sql.execute(
            "SELECT (SELECT count(*) FROM toolkit.candles), "
            "(SELECT coalesce(sum(_rows), 0) FROM toolkit.candles_blocks)"
        ).fetchone()
    assert found is not None
    return int(found[0]), int(found[1])
