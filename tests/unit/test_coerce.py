"""Values of a frame: each column type takes what it can hold exactly and names what it cannot."""

from __future__ import annotations

import struct
from decimal import Decimal

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from toolkit.columns import NULL_INT
from toolkit.dataset import Column, Dataset
from toolkit.errors import InputError
from toolkit.ingest.frames import to_batch

INF = float("inf")
NAN = float("nan")


def coerced(kind: str, values: object) -> np.ndarray:
    dataset = Dataset("d", (Column("x", kind),), (), ladder=())
    ts = np.zeros(len(values), "M8[us]")  # type: ignore[arg-type]  # all have a length
    return to_batch(dataset, {"ts": ts, "x": values}, series="A").values["x"]


def bits(values: object) -> list[bytes]:
    return [struct.pack(">d", v) for v in np.asarray(values, dtype=np.float64)]


FLOATS = [1.5, -0.0, INF, -INF, 5e-324, 0.0]


@pytest.mark.parametrize(
    "values",
    [
        FLOATS,
        np.array(FLOATS),
        np.array(FLOATS, dtype=object),
        np.array(FLOATS, dtype=">f8"),
        pd.Series(FLOATS),
        pd.Series(FLOATS, dtype="Float64"),
        pd.Series(FLOATS, dtype="double[pyarrow]"),
        pa.array(FLOATS),
        pa.chunked_array([FLOATS[:2], FLOATS[2:]]),
        pl.Series(FLOATS),
    ],
)
def test_floats_are_kept_bit_for_bit(values: object) -> None:
    assert bits(coerced("float", values)) == bits(FLOATS)


@pytest.mark.parametrize(
    "values",
    [
        [1.0, None],
        [1, None],
        [1, NAN],
        [1.0, pd.NA],
        [Decimal("1.0"), Decimal("NaN")],
        [np.float32(1), np.float32("nan")],
        np.array([1.0, NAN]),
        np.array([1.0, NAN], dtype=np.float32),
        np.array([1.0, NAN], dtype=np.float16),
        np.ma.MaskedArray([1.0, 7.0], [False, True]),
        pd.Series([1.0, None]),
        pd.Series([1, None], dtype="Int8"),
        pd.Series([1, None], dtype="Float32"),
        pd.Series([True, None], dtype="boolean"),
        pd.Series([1, None], dtype="int32[pyarrow]"),
        pd.Series([1.0, None], dtype="Sparse[float]"),
        pd.Series(pd.Categorical([1.0, None])),
        pa.array([1.0, None]),
        pa.array(np.array([1, 0], np.float16), mask=np.array([False, True])),
        pa.array([1, None], pa.uint8()),
        pa.array([True, None]),
        pa.array([Decimal("1.00"), None]),
        pa.array([0, 1.0, None])[1:],
        pl.Series([1.0, None]),
        pl.Series([1.0, NAN]),
        pl.Series([1, None], dtype=pl.UInt16),
        pl.Series([Decimal("1.0"), None]),
        pl.Series([True, None]),
    ],
)
def test_trap_10_nan_and_every_other_missing_value_is_null(values: object) -> None:
    column = coerced("float", values)
    assert column[0] == 1.0
    assert np.isnan(column[1])
    if not (isinstance(values, np.ndarray) and values.dtype.itemsize == 1):
        assert coerced("int", values).tolist() == [1, NULL_INT]
        assert coerced("decimal(2)", values).tolist() == [100, NULL_INT]
        assert coerced("bool", values).tolist() == [1, 2]


@pytest.mark.parametrize("kind", ["float", "int", "bool", "decimal(2)", "category"])
@pytest.mark.parametrize(
    "values",
    [
        [None, None],
        [NAN, None],
        np.array([None, None], dtype=object),
        pd.Series([pd.NA, pd.NA]),
        pd.Series([None, None], dtype="str"),
        pd.Series(pd.Categorical([None, None])),
        pa.nulls(2),
        pa.array([None, None], pa.string()),
        pl.Series([None, None]),
        pl.Series([None, None], dtype=pl.String),
        pd.Series([None, None], dtype="M8[us]"),
    ],
)
def test_a_column_of_nothing_fits_every_type(kind: str, values: object) -> None:
    assert len(coerced(kind, values)) == 2


TEXTS = [
    ["buy", "buy"],
    np.array(["buy", "buy"]),
    np.array(["buy", "buy"], dtype=object),
    pd.Series(["buy", "buy"]),
    pd.Series(["buy", "buy"], dtype="string"),
    pd.Series(["buy", "buy"], dtype="category"),
    pd.Series(["buy", "buy"], dtype="string[pyarrow]"),
    pd.Series(["buy", "buy"], dtype="large_string[pyarrow]"),
    pa.array(["buy", "buy"]),
    pa.array(["buy", "buy"], pa.large_string()),
    pa.array(["buy", "buy"], pa.string_view()),
    pa.array(["buy", "buy"]).dictionary_encode(),
    pa.array(["buy", "buy"]).cast(pa.dictionary(pa.uint8(), pa.string())),
    pl.Series(["buy", "buy"]),
    pl.Series(["buy", "buy"], dtype=pl.Categorical),
    pl.Series(["buy", "buy"], dtype=pl.Enum(["sell", "buy"])),
]


@pytest.mark.parametrize("values", TEXTS)
def test_a_category_takes_text_of_every_kind(values: object) -> None:
    assert coerced("category", values).tolist() == [0, 0]


@pytest.mark.parametrize("values", TEXTS)
@pytest.mark.parametrize("kind", ["float", "int", "bool", "decimal(2)"])
def test_text_in_a_number_column_is_refused(kind: str, values: object) -> None:
    with pytest.raises(InputError, match=r"column 'x', row 0: 'buy' is not .*\(2 such rows\)"):
        coerced(kind, values)


@pytest.mark.parametrize(
    ("kind", "values", "message"),
    [
        ("float", [1.0, "x", "y"], "row 1: 'x' is not a number"),
        ("float", [1.0, "x" * 500], "row 1: .*500 characters"),
        ("float", [1.0, [2]], r"row 1: \[2\] is not a number"),
        ("float", [1.0, 1j], "row 1: 1j is not a number"),
        ("float", [1.0, 10**400], "row 1: .* is beyond a float"),
        ("float", [1.0, 10**5000], "row 1: a int is beyond a float"),
        ("float", np.array(["2024-01-01"], "M8[us]"), "row 0: 2024-01-01.* is a time, not a n"),
        ("float", np.array([1j]), "numpy type complex128"),
        ("float", np.array([b"x"]), "numpy type .S1 are not taken; decode"),
        ("float", pa.array([[1.0]]), "Arrow type list"),
        ("float", pl.Series([[1.0]]), "polars type List"),
        ("float", pd.Series(pd.period_range("2024", periods=1)), "pandas type period"),
        ("int", [1.5], "row 0: 1.5 is not a whole number"),
        ("int", [1, None, 2.5], "row 2: 2.5 is not a whole number"),
        ("int", np.array([1.0, 1.5]), "row 1: 1.5 is not a whole number"),
        ("int", np.array([1.0, INF]), "row 1: inf is not a whole number"),
        ("int", np.array([2.0**63]), "row 0: .* is not a whole number of 64 bits"),
        ("int", [2**63], "row 0: a number beyond 64 bits"),
        ("int", [1, -(2**63)], "row 1: -9223372036854775808 is beyond 64 bits"),
        ("int", np.array([1, 2**63], dtype=np.uint64), "row 1: 9223372036854775808 is beyond 64"),
        ("int", pl.Series([1, 2**63], dtype=pl.UInt64), "row 1: 9223372036854775808 is beyond"),
        ("int", [Decimal("1.5")], "row 0: Decimal.* is not a whole number"),
        ("int", pa.array([Decimal("1.00"), Decimal("1.50")]), "row 1: 1.50 has more than 0 digits"),
        ("bool", [0, 2], "row 1: 2 is not a boolean"),
        ("bool", [0.5], "row 0: 0.5 is not a boolean"),
        ("category", [1, 2], "row 0: 1 is not text"),
        ("category", ["a", 2, 2], r"row 1: 2 is not text \(2 such rows\)"),
        ("category", ["a", b"b"], "row 1: b'b' is not text"),
        ("category", np.array([True]), "row 0: True is not text"),
        ("category", pa.array([Decimal("1.50")]), "row 0: 1.50 is not text"),
        ("category", [None, [1]], r"row 1: \[1\] is not text"),
        ("bool", pa.array([Decimal("1.50")]), "row 0: 1.5 is not a boolean"),
        ("category", ["a", "b\0"], "row 1: .* contains a NUL character"),
        ("category", ["a", ["b"]], "is not text"),
        ("decimal(2)", [0.125, 1], "row 0: 0.125 is not a decimal with 2 digits"),
        ("decimal(2)", np.array([0.1, 0.125]), "row 1: 0.125 is no exact decimal with 2 digits"),
        ("decimal(2)", np.array([1e17]), r"row 0: 1e\+17 is no exact decimal"),
        ("decimal(2)", np.array([INF]), "row 0: inf is no exact decimal"),
        ("decimal(2)", [INF], "row 0: "),
        ("decimal(2)", [Decimal("1.005")], "row 0: Decimal.* is not a decimal with 2 digits"),
        ("decimal(2)", [Decimal("Infinity")], "row 0: "),
        ("decimal(2)", [Decimal("1E+999999")], "row 0: a number beyond 64 bits"),
        ("decimal(2)", [Decimal("1E-999999")], "row 0: "),
        ("decimal(18)", [10], "row 0: 10 is beyond 64 bits at this scale"),
        ("decimal(2)", pa.array([Decimal("1.000"), Decimal("1.001")]), "row 1: 1.001 has more th"),
        ("decimal(0)", pa.array([Decimal(10**30)]), "row 0: a number beyond 64 bits"),
        ("decimal(2)", np.array([2**62]), "row 0: 4611686018427387904 is beyond 64 bits"),
    ],
)
def test_a_value_that_does_not_fit_is_named_with_its_row(
    kind: str, values: object, message: str
) -> None:
    with pytest.raises(InputError, match=f"column 'x'.*{message}"):
        coerced(kind, values)


@pytest.mark.parametrize(
    "values",
    [
        [10, -3],
        [10.0, -3.0],
        [10, -3.0],
        [Decimal(10), Decimal("-3.0")],
        np.array([10, -3], dtype=np.int8),
        np.array([10, -3], dtype=">i8"),
        np.array([10, -3], dtype=np.float32),
        pa.array([Decimal("10.00"), Decimal("-3.00")]),
    ],
)
def test_whole_numbers_of_every_kind_fit_an_int(values: object) -> None:
    assert coerced("int", values).tolist() == [10, -3]
    assert coerced("decimal(3)", values).tolist() == [10_000, -3_000]


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@given(n=st.integers(-99_999, 99_999))
def test_a_float_that_prints_as_the_decimal_is_that_decimal(n: int, dtype: type) -> None:
    values = np.array([n / 100], dtype=dtype)
    assert coerced("decimal(2)", values).tolist() == [n]
    assert coerced("decimal(4)", values).tolist() == [n * 100]


@given(st.floats(allow_nan=False, allow_infinity=False), st.integers(0, 18))
def test_a_float_becomes_a_decimal_only_if_it_comes_back(value: float, scale: int) -> None:
    for values in (np.array([value]), [value, "0"][:1], np.array([value], dtype=object)):
        try:
            scaled = int(coerced(f"decimal({scale})", values)[0])
        except InputError:
            continue
        assert float(Decimal(scaled).scaleb(-scale)) == value


@given(
    st.decimals(
        allow_nan=False, allow_infinity=False, places=4, min_value=-(10**14), max_value=10**14
    )
)
def test_decimals_of_every_kind_are_scaled_exactly(value: Decimal) -> None:
    expected = [int(value.scaleb(4))]
    for values in (
        [value],
        [value, None][:1],
        pd.Series([value]),
        pa.array([value]),
        pa.array([Decimal(0), value])[1:],
        pa.array([value], pa.decimal256(40, 6)),
        pl.Series([value], dtype=pl.Decimal(30, 4)),
    ):
        assert coerced("decimal(4)", values).tolist() == expected


@given(st.lists(st.none() | st.booleans(), min_size=1))
def test_booleans_of_every_kind_agree(values: list[bool | None]) -> None:
    expected = [2 if v is None else int(v) for v in values]
    floats = [NAN if v is None else float(v) for v in values]
    for same in (
        values,
        np.array(values, dtype=object),
        np.array(floats),
        pd.Series(values, dtype="boolean"),
        pd.Series(values, dtype=object),
        pa.array(values, pa.bool_()),
        pl.Series(values, dtype=pl.Boolean),
    ):
        assert coerced("bool", same).tolist() == expected


@given(st.lists(st.none() | st.integers(-(2**63) + 1, 2**63 - 1), min_size=1))
def test_integers_of_every_kind_agree(values: list[int | None]) -> None:
    expected = [NULL_INT if v is None else v for v in values]
    for same in (
        values,
        np.array(values, dtype=object),
        pd.Series(values, dtype="Int64"),
        pa.array(values, pa.int64()),
        pl.Series(values, dtype=pl.Int64),
    ):
        assert coerced("int", same).tolist() == expected
