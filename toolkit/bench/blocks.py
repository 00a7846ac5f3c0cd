"""The cases of cold data in blocks: what it takes, and how fast it is read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from toolkit.bench.caching import source
from toolkit.bench.files import ARCTIC, files
from toolkit.bench.ground import COLD, REAL, Ground, at, bars
from toolkit.bench.measure import Contender, Result, Target, Timing, by_turns, compare
from toolkit.bench.peers import ADBC, PANDAS
from toolkit.bench.reads import OURS, windows
from toolkit.columns import Columns

SERIES = "B0"
REAL_BARS = Path(__file__).parents[3] / "shared" / "data" / "btc_perp_1m_2022-01.csv"
ROW_TABLE, FROM_ROWS = "the row table with its key", "store.read, from rows"
FRESH_KEY = "the same, its key built afresh"
ALL_COLUMNS, SQL_HOURS = "all columns", "SQL over rows"
FAR = "2100-01-01T00:00Z"
_DAY = 1_440
_RAW = 48


def fill_cold(ground: Ground) -> None:
    """Have the bars a second time, in blocks: whoever needs them first pays for them."""
    if ground.store.series(COLD.name):
        return
    for number, name in enumerate(ground.names()):
        ground.store.backfill(COLD.name, bars(ground.sizes.minutes, number), series=name)
    ground.execute("VACUUM (ANALYZE) {table}", f"{COLD.name}_blocks")


def size(ground: Ground) -> Result:
    """Weigh real bars in blocks; where there are none, other bars that were made up."""
    if REAL_BARS.exists():
        kind, frame = "real bars", real_bars()
    else:
        kind, frame = "made-up bars, the real ones are not there", pd.DataFrame(bars(45_031, 99))
    names = [f"R{number}" for number in range(ground.sizes.real_series)]
    for first in range(0, len(frame), _DAY):  # as it comes: a day of all series at a time
        day = frame.iloc[first : first + _DAY]
        ground.store.write(REAL.name, pd.concat([day.assign(series=name) for name in names]))
    ground.store.refresh(REAL.name)
    ground.execute("VACUUM (ANALYZE) {table}", REAL.name)
    rows = stored(ground, REAL.name)
    ground.execute("REINDEX TABLE {table}", REAL.name)
    peers = {ROW_TABLE: rows, FRESH_KEY: stored(ground, REAL.name)}
    report = ground.store.compress(REAL.name, end=FAR)
    assert report.points == len(frame) * len(names), report
    ground.execute("VACUUM (ANALYZE) {table}", f"{REAL.name}_blocks")
    what = f"bytes a point in blocks, {len(frame):,} {kind}, {len(names)} times"
    return _weighed(ground, "blocks_size", what, REAL.name, peers, frame)


def size_generated(ground: Ground) -> Result:
    """Weigh the bars that the other cases read."""
    fill_cold(ground)
    frame = pd.DataFrame(bars(ground.sizes.minutes, 0))
    what = f"bytes a point in blocks, {len(frame):,} made-up bars"
    rows = stored(ground, "candles")
    return _weighed(ground, "blocks_size_generated", what, COLD.name, {ROW_TABLE: rows}, frame)


def read(ground: Ground) -> Result:
    """Read half a million points out of blocks."""
    fill_cold(ground)
    points, start, end = _large(ground)
    statement = ground.questions("candles", SERIES).points(start, end)
    frame = pd.DataFrame(bars(ground.sizes.minutes, 0)).iloc[:points]
    targets = {
        ADBC: Target(6.0),
        PANDAS: Target(60.0),
        ARCTIC: Target(5.0, is_cost=True),
    }
    with files(frame) as kept:
        others, missing = kept.readers(targets)
        contenders = [
            Contender(OURS, lambda turn: ground.store.read(COLD.name, SERIES, start, end)),
            Contender(ADBC, lambda turn: ground.peers.arrow(statement)),
            Contender(PANDAS, lambda turn: ground.peers.frame(statement), every=6),
            *others,
            Contender(FROM_ROWS, lambda turn: ground.store.read("candles", SERIES, start, end)),
        ]
        found = by_turns(contenders, ground.sizes.large_turns)
    answer = ground.store.read(COLD.name, SERIES, start, end)
    _assert_cold(answer, points)
    assert all(np.array_equal(answer.raw(n), frame[n].to_numpy()) for n in answer)
    compared = compare(found[OURS], found, targets)
    what = f"{points:,} points × 6 columns out of blocks"
    return Result("blocks_read", what, points, found[OURS], compared, missing=missing)


def columns(ground: Ground) -> Result:
    """Read the time and one column of the same."""
    fill_cold(ground)
    points, start, end = _large(ground)

    def act(*names: str) -> Callable[[int], Columns]:
        return lambda turn: ground.store.read(COLD.name, SERIES, start, end, columns=names or None)

    contenders = [Contender(OURS, act("close")), Contender(ALL_COLUMNS, act())]
    found = by_turns(contenders, 2 * ground.sizes.large_turns)
    _assert_cold(act("close")(0), points)
    what = f"ts and close of {points:,} points out of blocks"
    compared = compare(found[OURS], found, {ALL_COLUMNS: Target(2.0)})
    return Result("blocks_columns", what, points, found[OURS], compared)


def hours(ground: Ground) -> Result:
    """Make hourly bars of a year of minutes out of blocks, without a rollup."""
    fill_cold(ground)
    start, end = at(0), at(ground.sizes.minutes)
    statement = ground.questions("candles", SERIES).hours(start, end)

    def act(dataset: str, strategy: str) -> Callable[[int], Columns]:
        return lambda turn: ground.store.read(
            dataset, SERIES, start, end, step="1h", strategy=strategy
        )

    contenders = [
        Contender(OURS, act(COLD.name, "direct")),
        Contender(SQL_HOURS, lambda turn: ground.peers.rows(statement), every=2),
        Contender("store.read, aggregated from rows", act("candles", "aggregated"), every=2),
    ]
    found = by_turns(contenders, ground.sizes.large_turns)
    answer = act(COLD.name, "direct")(0)
    _assert_cold(answer, ground.sizes.minutes)
    from_rows = act("candles", "aggregated")(0)
    assert all(np.allclose(answer.raw(n), from_rows.raw(n)) for n in from_rows)
    what = f"{ground.sizes.minutes:,} minutes as {len(answer):,} hourly bars, out of blocks"
    compared = compare(found[OURS], found, {SQL_HOURS: Target(8.0)})
    return Result("blocks_hours", what, len(answer), found[OURS], compared)


def short(ground: Ground) -> Result:
    """Read a thousand points at random places out of blocks."""
    fill_cold(ground)
    points = ground.sizes.small_read
    statements, arguments = windows(ground, points)
    contenders = [
        Contender(OURS, lambda turn: ground.store.read(COLD.name, SERIES, *arguments(turn))),
        Contender(FROM_ROWS, lambda turn: ground.store.read("candles", SERIES, *arguments(turn))),
        Contender(ADBC, lambda turn: ground.peers.arrow(statements(turn))),
    ]
    found = by_turns(contenders, ground.sizes.turns)
    _assert_cold(ground.store.read(COLD.name, SERIES, *arguments(0)), points)
    what = f"{points:,} points × 6 columns out of blocks"
    compared = compare(found[OURS], found, {})
    return Result("blocks_short", what, points, found[OURS], compared, ceiling=2.0)


def real_bars() -> pd.DataFrame:
    """Return the bars of the file."""
    frame = pd.read_csv(REAL_BARS, parse_dates=["timestamp"]).rename(columns={"timestamp": "ts"})
    return frame.assign(ts=frame["ts"].dt.tz_localize("UTC"))


def stored(ground: Ground, table: str) -> dict[str, int]:
    """Return the bytes of a table's partitions: rows, values moved out, indexes, in all."""
    columns = {
        "rows": "pg_relation_size(relid)",
        "values": "coalesce(pg_relation_size(toast), 0)",
        "indexes": "pg_indexes_size(relid) + coalesce(pg_indexes_size(toast), 0)",
        "all": "pg_total_relation_size(relid)",
    }
    sums = ", ".join(f"sum({text})::bigint" for text in columns.values())
    statement = (
        f"SELECT {sums} FROM pg_partition_tree('{ground.schema}.{table}') AS t "  # noqa: S608
        "JOIN (SELECT oid, nullif(reltoastrelid, 0) AS toast FROM pg_class) AS c ON c.oid = t.relid"
    )
    values = ground.peers.rows(statement)[0]
    return dict(zip(columns, values, strict=True))


def _weighed(
    ground: Ground,
    case: str,
    what: str,
    dataset: str,
    row_tables: dict[str, dict[str, int]],
    frame: pd.DataFrame,
) -> Result:
    held = stored(ground, f"{dataset}_blocks")
    points = len(frame) * len(ground.store.series(dataset))
    with files(frame) as kept:
        parquet = kept.parquet.stat().st_size / len(frame)

    def timing(name: str, size: float) -> Timing:
        return Timing(name, 1, size, size)

    ours = timing("blocks", held["all"] / points)
    peers = {
        p.name: p
        for p in (
            *(timing(name, rows["all"] / points) for name, rows in row_tables.items()),
            timing("Parquet", parquet),
            timing("raw", float(_RAW)),
        )
    }
    named = {n: b for n, b in held.items() if n != "all"}
    named["maps"] = held["all"] - sum(named.values())
    parts = ", ".join(f"{n} {b / points:.2f}" for n, b in named.items())
    left = stored(ground, dataset)["all"]
    lines = (f"{case}: bytes a point: {parts}; the row table is left with {left:,} in all",)
    compared = compare(ours, peers, {ROW_TABLE: Target(20.0)})
    return Result(case, what, points, ours, compared, unit="B", ceiling=9.0, lines=lines)


def _large(ground: Ground) -> tuple[int, str, str]:
    points = min(ground.sizes.large_read, ground.sizes.minutes)
    return points, at(0), at(points)


def _assert_cold(columns: Columns, points: int) -> None:
    """Hold a case to what it says: every point has come out of a block."""
    found: dict[str, Any] = source(columns)
    assert found == {"points": 0, "blocks": points}, found
