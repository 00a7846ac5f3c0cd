"""Rows for blocks: every kind, every codec, what is awkward, and what is usual."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from toolkit import blocks
from toolkit.columns import NULL_BOOL, NULL_CODE, NULL_INT

Array = npt.NDArray[Any]
INT64 = st.integers(-(2**63), 2**63 - 1)
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
MINUTE = 60_000_000
YEAR_2024 = 1_704_067_200_000_000


def floats_from(bits: Array) -> Array:
    return bits.view(np.float64)


def column(rows: int) -> st.SearchStrategy[tuple[str, Array, int]]:
    """A kind, values with NULLs and extremes, and how many names a category has."""
    awkward = st.sampled_from([0.0, -0.0, np.nan, np.inf, -np.inf, 5e-324, 1.7e308, 0.1, 101.25])
    few = st.one_of(awkward, st.integers(0, 500).map(lambda n: n / 100))
    return st.one_of(
        st.tuples(st.just("float"), hnp.arrays(np.float64, rows, elements=few), st.just(0)),
        st.tuples(
            st.just("float"),
            # any bit pattern: every NaN, too
            hnp.arrays(np.int64, rows, elements=INT64).map(floats_from),
            st.just(0),
        ),
        st.tuples(
            st.just("int"),
            hnp.arrays(
                np.int64,
                rows,
                elements=st.one_of(
                    st.integers(-9, 9), INT64, st.sampled_from([NULL_INT, 2**63 - 1, -(2**63) + 1])
                ),
            ),
            st.just(0),
        ),
        st.tuples(
            st.just("bool"),
            hnp.arrays(np.int8, rows, elements=st.sampled_from([0, 1, NULL_BOOL])),
            st.just(0),
        ),
        st.integers(0, 5).flatmap(
            lambda n: st.tuples(
                st.just("category"),
                hnp.arrays(np.int32, rows, elements=st.integers(NULL_CODE, n - 1)),
                st.just(n),
            )
        ),
    )


@st.composite
def inputs(draw: st.DrawFn) -> dict[str, Any]:
    rows = draw(st.sampled_from([0, 1, 2, 3, 15, 16, 17, 100, 700]))
    names = draw(st.lists(TEXT.filter(bool), max_size=5, unique=True))
    values, categories = {}, {}
    for name in names:
        kind, values[name], count = draw(column(rows))
        if kind == "category":
            categories[name] = tuple(draw(st.lists(TEXT, min_size=count, max_size=count)))
    times = st.one_of(
        hnp.arrays(np.int64, rows, elements=INT64),
        st.tuples(INT64, st.integers(-(2**33), 2**33)).map(
            lambda line: np.array([_wrap(line[0] + line[1] * i) for i in range(rows)], np.int64)
        ),
    )
    return {"ts": draw(times), "values": values, "categories": categories, "stamp": draw(TEXT)}


def _wrap(value: int) -> int:
    return (value + 2**63) % 2**64 - 2**63


def same(one: Array, other: Array) -> bool:
    return one.dtype == other.dtype and one.tobytes() == other.tobytes()


def assert_same(block: blocks.Block, sample: Mapping[str, Any]) -> None:
    assert same(block.ts, sample["ts"])
    assert list(block.values) == list(sample["values"])
    for name, values in sample["values"].items():
        assert same(np.asarray(block.values[name]), values), name
        assert not block.values[name].flags.writeable
    assert block.categories == sample["categories"]
    assert block.stamp == sample["stamp"]
    assert not block.ts.flags.writeable


def bars(rows: int = 1_440, *, seed: int = 1) -> dict[str, Any]:
    """Minute bars of a walk in cents, and a volume."""
    chance = np.random.default_rng(seed)
    close = np.round(40_000 + np.cumsum(chance.normal(0, 5, rows)), 2)
    values = {
        "open": np.roll(close, 1),
        "high": np.round(close + chance.exponential(4, rows), 2),
        "low": np.round(close - chance.exponential(4, rows), 2),
        "close": close,
        "volume": np.round(chance.lognormal(3, 1, rows), 3),
    }
    return {
        "ts": YEAR_2024 + MINUTE * np.arange(rows),
        "values": values,
        "categories": {},
        "stamp": "",
    }


def one_of_each(rows: int = 90) -> dict[str, Any]:
    """A small block in which every kind and every codec occurs."""
    chance = np.random.default_rng(2)
    price = np.round(100 + np.cumsum(chance.normal(0, 1, rows)), 1)
    price[3] = np.nan
    return {
        "ts": np.cumsum(chance.integers(1, 9, rows)) * 1_000_000 - 2_000_000_000_000_000,
        "values": {
            "price": price,
            "noise": chance.integers(-(2**63), 2**63 - 1, rows).view(np.float64),
            "nothing": np.full(rows, np.nan),
            "seq": np.arange(rows) * 3 - 7,
            "size": np.where(chance.random(rows) < 0.1, NULL_INT, chance.integers(0, 99, rows)),
            "is buyer": chance.integers(0, 3, rows).astype(np.int8),
            "Börse 🚀": chance.integers(-1, 3, rows).astype(np.int32),
        },
        "categories": {"Börse 🚀": ("München", "", "東京\x00")},
        "stamp": "100:120:101,105",
    }


def cut(sample: dict[str, Any], rows: int) -> dict[str, Any]:
    values = {name: column[:rows] for name, column in sample["values"].items()}
    return sample | {"ts": sample["ts"][:rows], "values": values}
