"""to_batch: every kind of frame gives one batch, and nothing is lost."""

from __future__ import annotations

import subprocess
import sys
import types
from collections.abc import Callable
from decimal import Decimal

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from fix_batches import as_rows

from toolkit.columns import NULL_INT, Columns
from toolkit.dataset import CANDLES, TRADES, Aggregate, Column, Dataset
from toolkit.errors import InputError
from toolkit.ingest.frames import Arranged, arrange, runs, to_batch

EVERYTHING = Dataset(
    "everything",
    (
        Column("x"),
        Column("n", "int"),
        Column("flag", "bool"),
        Column("side", "category"),
        Column("fee", "decimal(2)"),
    ),
    (Aggregate("x", "last", ("x",)),),
    has_seq=True,
)
FRAME = pd.DataFrame(
    {
        "series": ["B", "A", "B"],
        "ts": pd.to_datetime([1_704_067_200_000_000] * 2 + [-1], unit="us", utc=True),
        "seq": [0, 0, 1],
        "x": [1.5, np.nan, -0.0],
        "n": pd.array([1, None, 2**62], dtype="Int64"),
        "flag": pd.array([True, None, False], dtype="boolean"),
        "side": ["buy", None, "sell"],
        "fee": [Decimal("100"), None, Decimal("-1.00")],
    }
)


def _dict_of_lists(frame: pd.DataFrame) -> object:
    return {name: frame[name].tolist() for name in frame}


def _dict_of_arrays(frame: pd.DataFrame) -> object:
    arrays = {name: frame[name].to_numpy(dtype=object) for name in frame}
    return arrays | {"ts": frame["ts"].dt.tz_convert(None).to_numpy(), "x": frame["x"].to_numpy()}


KINDS: dict[str, Callable[[pd.DataFrame], object]] = {
    "pandas": lambda f: f,
    "pandas nanoseconds": lambda f: f.assign(ts=f["ts"].astype("M8[ns, UTC]")),
    "pandas objects": lambda f: f.astype(object),
    "pandas categories": lambda f: f.astype({"series": "category", "side": "category"}),
    "pandas nullable": lambda f: f.convert_dtypes(),
    "pandas on arrow": lambda f: f.convert_dtypes(dtype_backend="pyarrow"),
    "pandas strided": lambda f: pd.concat([f, f]).sort_index(kind="stable").iloc[::2],
    "pandas indexed": lambda f: f.set_index(["series", "ts", "seq"]),
    "arrow table": lambda f: pa.Table.from_pandas(f, preserve_index=False),
    "arrow chunks": lambda f: pa.concat_tables(
        pa.Table.from_pandas(f, preserve_index=False).slice(i, 1) for i in range(3)
    ),
    "arrow sliced": lambda f: pa.Table.from_pandas(pd.concat([f, f]), preserve_index=False).slice(
        3
    ),
    "arrow batch": lambda f: pa.RecordBatch.from_pandas(f, preserve_index=False),
    "arrow dictionaries": lambda f: pa.Table.from_pandas(
        f.astype({"series": "category", "side": "category"}), preserve_index=False
    ),
    "polars": pl.from_pandas,
    "polars categories": lambda f: pl.from_pandas(f).with_columns(
        pl.col("series", "side").cast(pl.Categorical)
    ),
    "dict of lists": _dict_of_lists,
    "dict of arrays": _dict_of_arrays,
    "dict of series": lambda f: {name: f[name] for name in f},
    "dict of arrow": lambda f: dict(
        zip(f, pa.Table.from_pandas(f, preserve_index=False).columns, strict=True)
    ),
    "dict of polars": lambda f: {name: pl.from_pandas(f)[name] for name in f},
    "dict of a mapping": lambda f: types.MappingProxyType(_dict_of_arrays(f)),
}


@pytest.mark.parametrize("kind", [*KINDS])
def test_every_kind_of_frame_gives_the_same_rows(kind: str) -> None:
    batch = to_batch(EVERYTHING, KINDS[kind](FRAME))
    us = 1_704_067_200_000_000
    rows = as_rows(batch)
    assert rows[0] == ("B", us, 0, 1.5, 1, 1, "buy", 10_000)
    assert rows[1][:3] == ("A", us, 0)
    assert np.isnan(rows[1][3])
    assert rows[1][4:] == (NULL_INT, 2, None, NULL_INT)
    assert rows[2] == ("B", -1, 1, 0.0, 2**62, 0, "sell", -100)
    assert np.signbit(batch.values["x"][2])
    assert batch.seq is not None
    assert {n: a.dtype for n, a in batch.values.items()} == {
        "x": np.float64,
        "n": np.int64,
        "flag": np.int8,
        "side": np.int32,
        "fee": np.int64,
    }
    assert (batch.series.dtype, batch.ts.dtype) == (np.int32, np.int64)


def test_what_was_read_can_be_written_back() -> None:
    batch = to_batch(EVERYTHING, FRAME)
    cols = Columns(
        batch.names,
        batch.series,
        batch.ts,
        dict(batch.values),
        {c.name: c.type for c in EVERYTHING.columns},
        dict(batch.categories),
        batch.seq,
    )
    for again in (cols, cols.to_pandas(), cols.to_arrow(), cols.to_polars()):
        assert repr(as_rows(to_batch(EVERYTHING, again))) == repr(as_rows(batch))


@pytest.mark.parametrize(
    "frame",
    [
        {},
        pd.DataFrame(),
        pl.DataFrame(),
        pa.table({}),
        {"ts": [], "series": [], "close": []},
        pd.DataFrame(columns=["ts", "series", "close"]),
    ],
)
def test_a_frame_without_rows_is_an_empty_batch(frame: object) -> None:
    batch = to_batch(CANDLES, frame)
    assert len(batch) == 0
    assert set(batch.values) == set(CANDLES.names)
    assert arrange(batch) == Arranged(batch, 0)
    assert [len(a) for a in runs(batch, 60, 60)] == [0, 0, 0]


def test_a_frame_without_rows_must_still_have_the_right_columns() -> None:
    with pytest.raises(InputError, match="no column 'clsoe'"):
        to_batch(CANDLES, {"ts": [], "series": [], "clsoe": []})
    with pytest.raises(InputError, match="no column 'ts'"):
        to_batch(CANDLES, {"series": [], "close": []})


@pytest.mark.parametrize("frame", [[{"ts": 1}], 3, None, "candles.csv", pd.Series([1.0])])
def test_an_unknown_kind_of_frame_is_named(frame: object) -> None:
    with pytest.raises(InputError, match=f"cannot take a .*{type(frame).__name__}: give a pandas"):
        to_batch(CANDLES, frame)


def test_a_lazy_frame_is_to_be_collected() -> None:
    with pytest.raises(InputError, match="collect"):
        to_batch(CANDLES, pl.LazyFrame({"ts": [1]}))


TS = np.array(["2024-01-01", "2024-01-02"], dtype="M8[us]")


@pytest.mark.parametrize(
    ("frame", "arguments", "message"),
    [
        ({"ts": TS}, {}, "the dict has no column 'series'; it has 'ts'.*or give series="),
        ({"close": [1.0, 2.0]}, {"series": "A"}, "has no column 'ts'; it has 'close'"),
        ({"ts": TS, "series": ["A", "B"]}, {"series": "A"}, "column 'series', and series='A'"),
        ({"ts": TS, "clsoe": [1, 2]}, {"series": "A"}, "'clsoe' \\(did you mean 'close'\\?\\)"),
        ({"ts": TS, "Close": [1, 2]}, {"series": "A"}, "'Close' \\(did you mean 'close'\\?\\)"),
        ({"ts": TS, "seq": [1, 2]}, {"series": "A"}, "'candles' has no 'seq' in its key"),
        ({"ts": TS, "close": [1.0]}, {"series": "A"}, "differ in length: 'ts' 2, 'close' 1"),
        ({"ts": TS, "close": np.ones((2, 2))}, {"series": "A"}, "an array of 2 dimensions"),
        ({"ts": TS, "close": 1.0}, {"series": "A"}, "column 'close': 1.0 is not an array"),
        ({"ts": TS, "series": "A"}, {}, "one name for all rows goes into series="),
        ({"ts": TS, 7: [1, 2]}, {"series": "A"}, "column name 7 is a int, not text"),
        ({"ts": TS}, {"series": ""}, "series name '' is empty"),
        ({"ts": TS}, {"series": "a\0b"}, "contains a NUL character"),
        ({"ts": TS}, {"series": "x" * 501}, "longer than 500 characters"),
        ({"ts": TS, "series": ["A", None]}, {}, "column 'series', row 1: has no series name"),
        ({"ts": TS, "series": ["A", ""]}, {}, "column 'series', row 1: series name '' is empty"),
        ({"ts": TS, "series": ["A", "\ud800"]}, {}, "row 1: .* lone surrogate"),
        ({"ts": TS, "series": [1, 2]}, {}, "column 'series', row 0: 1 is not text"),
        ({"ts": TS, "series": ["A", 2]}, {}, "column 'series', row 1: 2 is not text"),
        ({"ts": TS}, {"series": "A", "mapping": {"x": "open"}}, "mapping: the frame has no colu"),
        ({"ts": TS, "c": [1, 2]}, {"series": "A", "mapping": {"c": "clos"}}, "mean 'close'"),
        (
            {"ts": TS, "c": [1, 2], "close": [1, 2]},
            {"series": "A", "mapping": {"c": "close"}},
            "more than one column 'close'",
        ),
    ],
)
def test_a_frame_that_does_not_fit_is_refused_by_name(
    frame: object, arguments: dict[str, object], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        to_batch(CANDLES, frame, **arguments)  # type: ignore[arg-type]  # built by the table


def test_duplicate_columns_are_refused() -> None:
    frame = pd.DataFrame([[1.0, 2.0]], columns=["close", "close"])
    with pytest.raises(InputError, match="more than one column 'close'"):
        to_batch(CANDLES, frame.assign(ts=TS[:1]), series="A", tz="UTC")
    table = pa.table([pa.array(TS[:1]), pa.array([1.0]), pa.array([1.0])], ["ts", "open", "open"])
    with pytest.raises(InputError, match="more than one column 'open'"):
        to_batch(CANDLES, table, series="A", tz="UTC")


def test_column_levels_are_to_be_flattened() -> None:
    frame = pd.DataFrame([[1.0]], columns=pd.MultiIndex.from_tuples([("close", "A")]))
    with pytest.raises(InputError, match="several levels"):
        to_batch(CANDLES, frame, series="A")


def test_mapping_renames_and_leaves_out() -> None:
    frame = {"time": TS, "sym": ["A", "B"], "Close": [1.0, 2.0], "note": ["x", "y"]}
    mapping = {"time": "ts", "sym": "series", "Close": "close", "note": None}
    batch = to_batch(CANDLES, frame, mapping=mapping)
    assert batch.names == ("A", "B")
    assert batch.values["close"].tolist() == [1.0, 2.0]
    assert np.isnan(batch.values["open"]).all()


@pytest.mark.parametrize("name", ["ts", None, "Date"])
def test_a_datetime_index_stands_in_for_ts(name: str | None) -> None:
    frame = pd.DataFrame({"close": [1.0, 2.0]}, index=pd.DatetimeIndex(TS, tz="UTC", name=name))
    assert to_batch(CANDLES, frame, series="A").ts.tolist() == TS.astype(int).tolist()


def test_a_ts_column_goes_before_the_index() -> None:
    frame = pd.DataFrame({"ts": pd.DatetimeIndex(TS, tz="UTC"), "close": [1.0, 2.0]})
    frame.index = pd.date_range("2030-01-01", periods=2, tz="UTC")
    assert to_batch(CANDLES, frame, series="A").ts.tolist() == TS.astype(int).tolist()


@pytest.mark.parametrize("name", ["BTC-USD", "a'b\"c", "100%; DROP TABLE", "🚀 ünï", "x" * 500])
def test_series_names_may_hold_any_text(name: str) -> None:
    assert to_batch(CANDLES, {"ts": TS}, series=name).names == (name,)
    assert to_batch(CANDLES, {"ts": TS, "series": [name, name]}).names == (name,)


def test_names_of_a_category_that_no_row_uses_are_dropped() -> None:
    series = pd.Categorical(["B", "B"], categories=["A", "B", ""])
    batch = to_batch(CANDLES, pd.DataFrame({"ts": TS, "series": series}), tz="UTC")
    assert (batch.names, batch.series.tolist()) == (("B",), [0, 0])


def test_equal_names_in_an_arrow_dictionary_are_one_series() -> None:
    series = pa.DictionaryArray.from_arrays(pa.array([0, 1]), pa.array(["A", "A"]))
    batch = to_batch(CANDLES, pa.table({"ts": pa.array(TS), "series": series}), tz="UTC")
    assert (batch.names, batch.series.tolist()) == (("A",), [0, 0])


def test_missing_value_columns_are_null() -> None:
    batch = to_batch(EVERYTHING, {"ts": TS}, series="A")
    assert np.isnan(batch.values["x"]).all()
    assert batch.values["n"].tolist() == [NULL_INT] * 2
    assert batch.values["flag"].tolist() == [2, 2]
    assert batch.values["side"].tolist() == [-1, -1]
    assert batch.categories == {"side": ()}
    assert batch.seq is None


def test_a_missing_seq_is_refused_by_row() -> None:
    with pytest.raises(InputError, match="column 'seq', row 1: there is no seq"):
        to_batch(TRADES, {"ts": TS, "seq": [1, None]}, series="A")


def test_float_columns_are_taken_without_a_copy() -> None:
    close = np.array([1.0, 2.0])
    batch = to_batch(CANDLES, {"ts": TS, "close": close}, series="A")
    assert np.shares_memory(batch.values["close"], close)


def test_dicts_of_arrays_need_neither_pandas_nor_arrow() -> None:
    code = (
        "import sys, numpy as np; from toolkit.ingest.frames import to_batch;"
        "from toolkit.dataset import TRADES;"
        "to_batch(TRADES, {'ts': np.array([0], 'M8[us]'), 'price': [1.0], 'side': ['buy']},"
        " series='A'); print(sorted({'pandas', 'polars', 'pyarrow'} & set(sys.modules)))"
    )
    answer = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONPATH": ":".join(p for p in sys.path if p)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert answer.stdout.strip() == "[]"
