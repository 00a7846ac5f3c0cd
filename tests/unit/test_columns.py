"""Columns: what a read answers, and what becomes of it in pandas, Arrow and polars."""

from __future__ import annotations

import sys
from decimal import Decimal

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from toolkit.columns import NULL_BOOL, NULL_CODE, NULL_INT, Columns, is_null, nulls
from toolkit.errors import MissingExtra, QueryError, UnknownName

TYPES = {
    "price": "float",
    "size": "int",
    "is_buyer": "bool",
    "side": "category",
    "fee": "decimal(2)",
    "first_ts": "time",
}


def sample(*, with_nulls: bool = True, seq: bool = True) -> Columns:
    values = {
        "price": np.array([1.5, -0.0, np.nan if with_nulls else 7.0]),
        "size": np.array([1, 2**62, NULL_INT if with_nulls else 3]),
        "is_buyer": np.array([0, 1, NULL_BOOL if with_nulls else 1], dtype=np.int8),
        "side": np.array([1, 0, NULL_CODE if with_nulls else 0], dtype=np.int32),
        "fee": np.array([12345, -1, NULL_INT if with_nulls else 0]),
        "first_ts": np.array([-1, 0, NULL_INT if with_nulls else 1]),
    }
    return Columns(
        ("A", "B; 🚀"),
        np.array([0, 0, 1], dtype=np.int32),
        np.array([-1, 0, 4_000_000_000_000_000]),
        values,
        TYPES,
        {"side": ("buy", "sell")},
        np.array([0, 1, 2]) if seq else None,
        "the plan",
    )


def test_columns_without_nulls_are_plain_arrays() -> None:
    cols = sample(with_nulls=False)
    assert cols["price"].dtype == np.float64
    assert cols["size"].tolist() == [1, 2**62, 3]
    assert cols["is_buyer"].dtype == np.bool_
    assert cols["is_buyer"].tolist() == [False, True, True]
    assert not any(isinstance(cols[name], np.ma.MaskedArray) for name in cols)


def test_nulls_are_masked_in_what_has_no_nan() -> None:
    cols = sample()
    assert np.isnan(cols["price"][2])
    for name in ("size", "is_buyer", "fee"):
        column = cols[name]
        assert isinstance(column, np.ma.MaskedArray)
        assert column.mask.tolist() == [False, False, True]
    assert cols["is_buyer"].dtype == np.bool_
    assert cols["side"].tolist() == [1, 0, -1]
    assert np.isnat(cols["first_ts"][2])


def test_time_is_datetime64_in_microseconds() -> None:
    cols = sample()
    assert cols.ts.dtype == np.dtype("M8[us]")
    assert cols.ts[0] == np.datetime64("1969-12-31T23:59:59.999999")


@pytest.mark.parametrize("name", [*TYPES])
@pytest.mark.parametrize("with_nulls", [True, False])
def test_no_caller_can_alter_a_column(name: str, with_nulls: bool) -> None:
    column = sample(with_nulls=with_nulls)[name]
    with pytest.raises(ValueError, match="read-only"):
        column[0] = column[1]
    if isinstance(column, np.ma.MaskedArray):
        with pytest.raises(ValueError, match="read-only"):
            column[0] = np.ma.masked


def test_no_caller_can_alter_the_keys() -> None:
    cols = sample()
    assert cols.seq is not None
    for array in (cols.ts, cols.series, cols.seq, cols.instants, cols.raw("price")):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = array[1]


def test_what_the_reader_holds_stays_writable_and_is_not_copied() -> None:
    values = np.arange(3.0)
    cols = Columns(("A",), np.zeros(3, np.int32), np.arange(3), {"x": values}, {"x": "float"})
    assert np.shares_memory(cols["x"], values)
    assert values.flags.writeable


def test_it_reads_like_a_mapping_of_its_columns() -> None:
    cols = sample()
    assert len(cols) == 3
    assert list(cols) == list(cols.keys()) == list(TYPES)
    assert "price" in cols
    assert "ts" not in cols
    assert set(dict(cols)) == set(TYPES)
    assert cols.plan == "the plan"


def test_an_unknown_column_is_answered_with_the_nearest() -> None:
    with pytest.raises(UnknownName, match="did you mean 'price'"):
        sample()["prise"]


def test_the_repr_shows_rows_series_columns_and_range() -> None:
    assert repr(sample()) == (
        "<Columns: 3 rows of 2 series, 1969-12-31T23:59:59.999999Z to 2096-10-02T07:06:40Z; "
        "price float, size int, is_buyer bool, side category, fee decimal(2), first_ts time>"
    )
    assert repr(Columns.empty({"x": "float"})) == "<Columns: 0 rows of 0 series; x float>"


@pytest.mark.parametrize("rows", [slice(1, 3), np.array([False, True, True]), np.array([1, 2])])
def test_select_keeps_every_part_of_the_chosen_rows(rows: slice | np.ndarray) -> None:
    part = sample().select(rows)
    assert part.series.tolist() == [0, 1]
    assert part.seq is not None
    assert part.seq.tolist() == [1, 2]
    assert part.names == ("A", "B; 🚀")
    pd.testing.assert_frame_equal(
        part.to_pandas(), sample().to_pandas().iloc[1:].reset_index(drop=True)
    )


def test_concat_unites_series_names_and_categories() -> None:
    one = sample()
    other = Columns(
        ("B; 🚀", "C"),
        np.array([0, 1], dtype=np.int32),
        np.array([5, 6]),
        {**{n: nulls(k, 2) for n, k in TYPES.items()}, "side": np.array([0, -1], dtype=np.int32)},
        TYPES,
        {"side": ("none", "buy")},
        np.array([0, 0]),
    )
    both = Columns.concat([one, other])
    assert both.names == ("A", "B; 🚀", "C")
    assert both.series.tolist() == [0, 0, 1, 1, 2]
    assert both.categories["side"] == ("buy", "sell", "none")
    assert both["side"].tolist() == [1, 0, -1, 2, -1]
    assert both.plan == "the plan"
    assert Columns.concat([one, other], plan="new").plan == "new"


def test_concat_refuses_pieces_of_another_shape() -> None:
    with pytest.raises(QueryError, match="nothing to concatenate"):
        Columns.concat([])
    with pytest.raises(QueryError, match="piece 1 has columns x float"):
        Columns.concat([sample(), Columns.empty({"x": "float"})])
    with pytest.raises(QueryError, match="only one of them has seq"):
        Columns.concat([sample(), sample(seq=False)])


def test_pandas_gets_exact_values_and_null_aware_types() -> None:
    frame = sample().to_pandas()
    assert list(frame) == ["series", "ts", "seq", *TYPES]
    assert str(frame["ts"].dtype) == "datetime64[us, UTC]"
    assert frame["series"].tolist() == ["A", "A", "B; 🚀"]
    assert frame["series"].dtype == "category"
    assert str(frame["size"].dtype) == "Int64"
    assert frame["size"].tolist() == [1, 2**62, pd.NA]
    assert str(frame["is_buyer"].dtype) == "boolean"
    assert frame["side"].isna().tolist() == [False, False, True]
    assert frame["fee"].tolist() == [Decimal("123.45"), Decimal("-0.01"), None]
    assert frame["first_ts"].isna().tolist() == [False, False, True]
    assert isinstance(frame.index, pd.RangeIndex)


def test_pandas_gets_plain_types_where_there_are_no_nulls() -> None:
    frame = sample(with_nulls=False, seq=False).to_pandas()
    assert "seq" not in frame
    assert [str(frame[n].dtype) for n in ("price", "size", "is_buyer")] == [
        "float64",
        "int64",
        "bool",
    ]


def test_a_frame_belongs_to_its_caller() -> None:
    cols = sample(with_nulls=False)
    frame = cols.to_pandas()
    frame.loc[0, "price"] = 99.0
    frame.loc[0, "size"] = 99
    assert cols["price"][0] == 1.5
    assert cols["size"][0] == 1


def test_arrow_gets_nulls_for_every_null() -> None:
    table = sample().to_arrow()
    table.validate(full=True)
    assert table.schema.field("ts").type == pa.timestamp("us", tz="UTC")
    assert table.schema.field("series").type == pa.dictionary(pa.int32(), pa.string())
    assert table.schema.field("fee").type == pa.decimal128(18, 2)
    for name in TYPES:
        assert table[name].null_count == 1, name
    assert table["fee"].to_pylist() == [Decimal("123.45"), Decimal("-0.01"), None]
    assert table["side"].to_pylist() == ["sell", "buy", None]
    assert table["is_buyer"].to_pylist() == [False, True, None]


def test_a_decimal_of_nineteen_digits_still_fits_arrow() -> None:
    top = 2**63 - 1
    cols = Columns(
        ("A",),
        np.zeros(2, np.int32),
        np.arange(2),
        {"fee": np.array([top, -top])},
        {"fee": "decimal(2)"},
    )
    table = cols.to_arrow()
    table.validate(full=True)
    assert table["fee"].to_pylist() == [Decimal(top).scaleb(-2), -Decimal(top).scaleb(-2)]


def test_polars_gets_what_arrow_gets() -> None:
    frame = sample().to_polars()
    assert frame.schema["ts"] == pl.Datetime("us", "UTC")
    assert frame["price"].to_list() == [1.5, -0.0, None]
    assert frame["fee"].to_list() == [Decimal("123.45"), Decimal("-0.01"), None]
    assert frame["series"].cast(pl.String).to_list() == ["A", "A", "B; 🚀"]


@pytest.mark.parametrize(("package", "method"), [("pyarrow", "to_arrow"), ("polars", "to_polars")])
def test_a_missing_package_is_named_with_its_extra(
    package: str, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtra, match=rf"Columns\.{method}.*{package}.*\[frames\]"):
        getattr(sample(), method)()


def test_no_rows_convert_everywhere() -> None:
    cols = Columns.empty(TYPES, has_seq=True)
    assert len(cols.to_pandas()) == cols.to_arrow().num_rows == cols.to_polars().height == 0
    assert str(cols.to_pandas()["ts"].dtype) == "datetime64[us, UTC]"


@pytest.mark.parametrize("kind", [*TYPES.values()])
def test_nulls_are_null_in_every_type(kind: str) -> None:
    assert is_null(kind, nulls(kind, 2)).tolist() == [True, True]


@given(st.lists(st.none() | st.integers(-(2**63) + 1, 2**63 - 1), max_size=20), st.integers(0, 18))
def test_decimals_are_exact_in_pandas_and_arrow(numbers: list[int | None], scale: int) -> None:
    scaled = np.array([NULL_INT if n is None else n for n in numbers], dtype=np.int64)
    cols = Columns(
        ("A",),
        np.zeros(len(scaled), np.int32),
        np.arange(len(scaled)),
        {"x": scaled},
        {"x": f"decimal({scale})"},
    )
    expected = [None if n is None else Decimal(n).scaleb(-scale) for n in numbers]
    assert cols.to_pandas()["x"].tolist() == expected
    assert cols.to_arrow()["x"].to_pylist() == expected
