"""Pictures: at most so many points, the same columns whatever answers, picked by the chart."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from fix_servers import Database
from fix_stores import create

import toolkit
from toolkit.dataset import CANDLES, Aggregate, Column, Dataset
from toolkit.errors import QueryError

START, END = "2024-01-01T00:00Z", "2024-03-01T00:00Z"
MINUTES = 20_000

COUNTS = Dataset(
    "counts",
    (Column("hits", "int"), Column("cost", "decimal(2)"), Column("mood", "category")),
    (
        Aggregate("hits", "avg", ("hits",)),
        Aggregate("hits_min", "min", ("hits",)),
        Aggregate("hits_max", "max", ("hits",)),
        Aggregate("cost", "sum", ("cost",)),
        Aggregate("mood_last", "last", ("mood",)),
    ),
    chart="hits",
)
PRICES = Dataset(
    "prices",
    (Column("price", "decimal(4)"), Column("size")),
    (
        Aggregate("price", "last", ("price",)),
        Aggregate("size_min", "min", ("size",)),
        Aggregate("size_max", "max", ("size",)),
        Aggregate("size_last", "last", ("size",)),
    ),
    ladder=("5m", "1h"),
    chart="price",
)


def instants(count: int = MINUTES) -> Any:
    return np.datetime64("2024-01-01", "us") + np.arange(count) * np.timedelta64(60, "s")


def wave(count: int = MINUTES) -> Any:
    x = np.arange(count)
    return np.round(np.sin(x / 700) * 100 + np.cos(x / 3) * 5, 2)


def test_points_are_the_same_in_either_direction(store: Any) -> None:
    store.write("metrics", {"ts": instants(), "value": wave()}, series="a")
    for options in ({"strategy": "direct"}, {"strategy": "downsampled"}):
        cols = store.read("metrics", "a", START, END, points=300, **options)
        back = store.read("metrics", "a", START, END, points=300, descending=True, **options)
        assert len(cols) > 100
        assert back.ts.tolist() == cols.ts.tolist()[::-1]
        assert back["value"].tolist() == cols["value"].tolist()[::-1]


def test_long_points_are_the_same_in_either_direction(store: Any) -> None:
    store.write("metrics", {"ts": instants(80_000), "value": wave(80_000)}, series="a")
    options = {"points": 300, "strategy": "direct"}
    cols = store.read("metrics", "a", START, END, **options)
    back = store.read("metrics", "a", START, END, descending=True, **options)
    assert back.ts.tolist() == cols.ts.tolist()[::-1]


def test_a_regular_series_with_a_gap_is_drawn_from_its_points(store: Any) -> None:
    for start in ("2022-01-01", "2024-01-01"):
        ts = np.datetime64(start, "us") + np.arange(10) * np.timedelta64(60, "s")
        store.write("metrics", {"ts": ts, "value": np.arange(10.0)}, series="a")
    cols = store.read("metrics", "a", "2022-01-01Z", END, points=100)
    assert len(cols) == 20
    assert "20 points" in cols.plan.reason


def write_candles(store: Any) -> None:
    close = wave()
    high, low = close + 1, close - 1
    high[12_345] = 500.0
    volume = np.ones(MINUTES)
    volume[[777, 15_000]] = 1e6
    frame = {"ts": instants(), "open": close, "high": high, "low": low, "close": close}
    store.write("candles", frame | {"volume": volume}, series="a")


def test_candles_from_a_rollup_have_the_columns_of_points(store: Any) -> None:
    write_candles(store)
    direct = store.read("candles", "a", START, END, points=300, strategy="direct")
    cols = store.read("candles", "a", START, END, points=300, strategy="downsampled")
    assert list(cols) == list(direct)
    assert dict(cols.types) == dict(direct.types)
    assert 100 < len(cols) <= 300
    assert cols["high"].max() == 500.0
    bars = store.read("candles", "a", START, END, step=cols.plan.step)
    at = np.searchsorted(bars.ts, cols.ts)
    for column in cols:
        assert cols[column].tolist() == bars[column][at].tolist()


def test_a_picture_is_picked_by_the_chart_whatever_is_asked(store: Any) -> None:
    write_candles(store)
    for strategy in ("direct", "downsampled"):
        options: dict[str, Any] = {"points": 300, "strategy": strategy}
        whole = store.read("candles", "a", START, END, **options)
        cols = store.read("candles", "a", START, END, columns=["volume"], **options)
        assert list(cols) == ["volume"]
        assert cols.ts.tolist() == whole.ts.tolist()


def test_the_value_of_a_metric_is_an_extreme_of_its_bar(store: Any) -> None:
    value = wave()
    value[[7_000, 12_345]] = [900.0, -900.0]
    store.write("metrics", {"ts": instants(), "value": value}, series="a")
    cols = store.read("metrics", "a", START, END, points=300, strategy="downsampled")
    assert (list(cols), dict(cols.types)) == (["value"], {"value": "float"})
    assert 100 < len(cols) <= 300
    assert {900.0, -900.0} <= set(cols["value"].tolist())
    assert len(np.unique(cols.ts)) == len(cols)
    bars = store.read("metrics", "a", START, END, step=cols.plan.step)
    at = np.searchsorted(bars.ts, cols.ts)
    low, high = bars["value_min"][at], bars["value_max"][at]
    assert np.all((cols["value"] == low) | (cols["value"] == high))


def test_trades_are_drawn_from_a_rollup_where_it_keeps_all_that_is_asked(store: Any) -> None:
    frame = {"ts": instants(), "seq": np.zeros(MINUTES, int), "price": wave()}
    store.write("trades", frame | {"size": wave(), "side": ["buy"] * MINUTES}, series="a")
    options: dict[str, Any] = {"points": 200}
    cols = store.read(
        "trades", "a", START, END, columns=["price"], strategy="downsampled", **options
    )
    assert list(cols) == ["price"]
    assert set(cols["price"].tolist()) <= set(frame["price"].tolist())
    assert cols.seq is None
    with pytest.raises(QueryError, match="keep no value of 'size'"):
        store.read("trades", "a", START, END, strategy="downsampled", **options)
    direct = store.read("trades", "a", START, END, strategy="direct", **options)
    assert list(direct) == ["price", "size", "side"]
    assert direct.seq is None


def test_ints_decimals_and_categories_keep_their_types(store: Any, database: Database) -> None:
    create(database, COUNTS, PRICES)
    hits = np.arange(MINUTES) % 1_000
    frame = {"ts": instants(), "hits": hits, "cost": [1.25] * MINUTES, "mood": ["ok"] * MINUTES}
    store.write("counts", frame, series="a")
    store.write("prices", {"ts": instants(), "price": wave(), "size": wave()[::-1]}, series="a")
    for dataset in ("counts", "prices"):
        direct = store.read(dataset, "a", START, END, points=100, strategy="direct")
        cols = store.read(dataset, "a", START, END, points=100, strategy="downsampled")
        assert list(cols) == list(direct)
        assert dict(cols.types) == dict(direct.types)
        assert [cols[c].dtype for c in cols] == [direct[c].dtype for c in direct]
        assert 30 < len(cols) <= 100
        if dataset == "counts":
            assert (cols["hits"].min(), cols["hits"].max()) == (0, 999)
            assert set(cols["mood"].tolist()) == {cols.categories["mood"].index("ok")}
        else:  # not by the least and greatest size
            swing = cols["price"].max() - cols["price"].min()
            assert swing > 0.9 * (direct["price"].max() - direct["price"].min())


def test_many_points_are_drawn_like_few(database: Database) -> None:
    with toolkit.connect(database.dsn) as store:
        write_candles(store)
        few = store.read("candles", "a", START, END, points=300)
    assert few.plan.strategy == "direct"
    assert list(few) == list(CANDLES.names)
