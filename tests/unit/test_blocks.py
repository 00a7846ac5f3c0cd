"""Blocks: every bit survives, the header says what is there, and the page on the format is true."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
from fix_blocks import INT64, TEXT, assert_same, bars, cut, inputs, one_of_each, same
from fix_servers import PROJECT
from hypothesis import given, settings
from hypothesis import strategies as st

from toolkit import blocks
from toolkit.blocks import FAST, SMALL, DamagedBlock
from toolkit.blocks.format import MAX_ROWS, Codec, Kind
from toolkit.columns import NULL_BOOL, NULL_CODE, NULL_INT
from toolkit.errors import UnknownName

_PYTHON = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
NANS = (
    0x7FF8_0000_0000_0000,
    0x7FF0_0000_0000_0001,
    0xFFFF_FFFF_FFFF_FFFF,
    0x7FF4_0000_0000_BEEF,
)


# -- there and back -----------------------------------------------------------------------------


@settings(max_examples=150, deadline=None)
@given(inputs(), st.sampled_from([FAST, 2, SMALL]), st.booleans())
def test_every_bit_survives(sample: dict[str, Any], level: int, with_states: bool) -> None:
    data = blocks.encode(**sample, level=level, with_states=with_states)
    assert_same(blocks.decode(data), sample)
    assert_same(blocks.decode(memoryview(data)), sample)
    assert blocks.encode(**sample, level=level, with_states=with_states) == data


@pytest.mark.parametrize("rows", [0, 1, 2, 15, 16, 40, 5_000])
@pytest.mark.parametrize("level", range(13))
def test_all_kinds_survive_at_every_level(rows: int, level: int) -> None:
    sample = one_of_each(rows) if rows > 3 else cut(one_of_each(), rows)
    assert_same(blocks.decode(blocks.encode(**sample, level=level)), sample)


def test_all_codecs_are_used_where_they_fit() -> None:
    header = blocks.read_header(blocks.encode(**one_of_each()))
    assert {column.name: column.codec for column in header.columns} == {
        "": Codec.PCO,
        "price": Codec.PCO,
        "noise": Codec.RAW,
        "nothing": Codec.CONSTANT,
        "seq": Codec.LINEAR,
        "size": Codec.PCO,
        "is buyer": Codec.PCO,
        "Börse 🚀": Codec.PCO,
    }


def test_zero_and_minus_zero_are_not_constant() -> None:
    zeros = np.array([0.0, -0.0] * 10 + [0.0])
    block = blocks.decode(blocks.encode(np.arange(21), {"z": zeros}, {}))
    assert same(np.asarray(block.values["z"]), zeros)


@pytest.mark.parametrize("level", range(13))
def test_the_bits_of_awkward_floats_survive_among_prices(level: int) -> None:
    price = bars()["values"]["close"].copy()
    nans = np.array(NANS, np.uint64).view(np.float64)
    for at, value in enumerate([*nans, -0.0, 0.0, np.inf, -np.inf, 5e-324, -2.2e-308, 1.7e308]):
        price[7 + at :: 97] = value
    block = blocks.decode(blocks.encode(np.arange(1_440), {"p": price}, {}, level=level))
    assert same(np.asarray(block.values["p"]), price)


def test_a_constant_column_costs_next_to_nothing() -> None:
    rows = 20_000
    floats = [np.full(rows, value) for value in (0.0, -0.0, np.inf, 5e-324, 101.25, np.nan)]
    floats.append(np.full(rows, NANS[3], np.uint64).view(np.float64))
    whole = [np.full(rows, value) for value in (0, NULL_INT, 2**63 - 1)]
    bools = [np.full(rows, value, np.int8) for value in (0, 1, NULL_BOOL)]
    codes = [np.full(rows, value, np.int32) for value in (0, NULL_CODE)]
    values = {str(at): column for at, column in enumerate([*floats, *whole, *bools, *codes])}
    names = {"13": ("a",), "14": ()}
    sample = {"ts": np.arange(rows), "values": values, "categories": names, "stamp": ""}
    data = blocks.encode(**sample)
    assert len(data) < 24 + 30 * (1 + len(values))
    assert_same(blocks.decode(data), sample)


@pytest.mark.parametrize("names", [(), ("",), ("", "a", ""), tuple(map(str, range(30_000)))])
def test_categories_have_no_names_empty_ones_or_many(names: tuple[str, ...]) -> None:
    codes = np.arange(len(names) + 40, dtype=np.int32) % (len(names) + 1) - 1
    sample = {
        "ts": np.arange(len(codes)),
        "values": {"c": codes},
        "categories": {"c": names},
        "stamp": "",
    }
    assert_same(blocks.decode(blocks.encode(**sample)), sample)


def test_steps_that_wrap_around_are_exact() -> None:
    for ts in (
        [-(2**63), 0, 2**63 - 1],
        [2**63 - 3, 2**63 - 2, 2**63 - 1],
        [-(2**63) + 2, -(2**63) + 1, -(2**63)],
        [0, 2**62, -(2**63), -(2**62)],
    ):
        sample = {"ts": np.array(ts), "values": {}, "categories": {}, "stamp": ""}
        assert_same(blocks.decode(blocks.encode(**sample)), sample)


def test_many_columns_and_strided_ones_survive() -> None:
    table = np.arange(30_000.0).reshape(100, 300)
    values = {f"c{i}": table[:, i] for i in range(300)}
    block = blocks.decode(blocks.encode(np.arange(100)[::-1], values, {}))
    assert block.ts[0] == 99
    assert all((block.values[name] == column).all() for name, column in values.items())


def test_only_what_is_asked_for_is_decoded() -> None:
    sample = one_of_each()
    header, parts = blocks.encode_parts(**sample)
    damaged = [b"\xff" * len(part) if at == 1 else part for at, part in enumerate(parts)]
    data = b"".join([header, *damaged])
    block = blocks.decode(data, ["Börse 🚀", "seq"])
    assert list(block.values) == ["Börse 🚀", "seq"]
    assert block.categories == sample["categories"]
    assert list(blocks.decode(data, []).values) == []
    with pytest.raises(DamagedBlock, match="price"):
        blocks.decode(data, ["price"])
    with pytest.raises(UnknownName, match="did you mean 'price'"):
        blocks.decode(data, ["prize"])


def test_a_day_of_bars_is_small() -> None:
    sample = bars()
    raw = 8 * 1_440 * 6
    fast = len(blocks.encode(**sample))
    assert raw > 3 * fast
    assert len(blocks.encode(**sample, level=SMALL)) < fast
    assert len(blocks.encode(sample["ts"], {}, {})) < 60


def test_nulls_do_not_spoil_a_column() -> None:
    sample = bars()
    plain = len(blocks.encode(**sample))
    for values in sample["values"].values():
        values[::37] = np.nan
    assert len(blocks.encode(**sample)) < 1.4 * plain


@pytest.mark.parametrize("stray", [0.1, 0.25, 0.5])
def test_one_price_between_ticks_does_not_spoil_a_column(stray: float) -> None:
    close = np.round(bars()["values"]["close"])
    plain = len(blocks.encode(np.arange(1_440), {"close": close}, {}))
    close[700] += stray
    assert len(blocks.encode(np.arange(1_440), {"close": close}, {})) < 1.4 * plain


# -- the header ---------------------------------------------------------------------------------


def test_a_cached_block_has_no_states_and_a_stored_one_has() -> None:
    sample = one_of_each()
    assert all(c.states is None for c in blocks.read_header(blocks.encode(**sample)).columns)
    header = blocks.read_header(blocks.encode(**sample, with_states=True))
    states = {column.name: column.states for column in header.columns}
    price = sample["values"]["price"]
    ts = sample["ts"]
    assert states[""] == (90, ts[0], ts[-1], ts[0], ts[-1], None)
    assert states["price"] == pytest.approx(
        (89, np.nanmin(price), np.nanmax(price), price[0], price[-1], np.nansum(price))
    )
    assert states["nothing"] == blocks.States(0)
    assert states["seq"] == (90, -7, 260, -7, 260, sum(range(-7, 261, 3)))
    size = [n for n in sample["values"]["size"].tolist() if n != NULL_INT]
    assert states["size"] == (len(size), min(size), max(size), size[0], size[-1], sum(size))
    is_buyer = [n for n in sample["values"]["is buyer"].tolist() if n != NULL_BOOL]
    assert states["is buyer"] == (len(is_buyer), 0, 1, is_buyer[0], is_buyer[-1], sum(is_buyer))
    codes = [n for n in sample["values"]["Börse 🚀"].tolist() if n >= 0]
    assert states["Börse 🚀"] == (len(codes), None, None, codes[0], codes[-1], None)


@given(st.lists(INT64, max_size=40))
def test_sums_of_integers_are_exact(numbers: list[int]) -> None:
    values = {"n": np.array(numbers, np.int64)}
    data = blocks.encode(np.arange(len(numbers)), values, {}, with_states=True)
    states = blocks.read_header(data).columns[1].states
    valid = [n for n in numbers if n != NULL_INT]
    assert states is not None
    assert states.sum == (sum(valid) if valid else None)


SUMS = st.dictionaries(TEXT, st.floats(allow_nan=False), max_size=6)


@given(SUMS, TEXT, st.booleans())
def test_named_sums_come_back(sums: dict[str, float], stamp: str, with_states: bool) -> None:
    sample = one_of_each(20) | {"stamp": stamp}
    head, parts = blocks.encode_parts(**sample, with_states=with_states, sums=sums)
    header = blocks.read_header(head)
    assert list(header.sums.items()) == list(sums.items())
    assert [bits(value) for value in header.sums.values()] == [bits(v) for v in sums.values()]
    assert_same(blocks.decode(head + b"".join(parts)), sample)


def bits(value: float) -> bytes:
    return np.float64(value).tobytes()


def test_a_sum_may_be_nan_and_without_sums_there_is_nothing_of_them() -> None:
    sample = one_of_each()
    plain, _ = blocks.encode_parts(**sample)
    head, _ = blocks.encode_parts(**sample, sums={"pv": np.nan, "v": -0.0})
    assert [bits(v) for v in blocks.read_header(head).sums.values()] == [bits(np.nan), bits(-0.0)]
    assert len(head) == len(plain) + 2 + 2 * (8 + 2) + len("pvv")
    assert blocks.encode_parts(**sample, sums={})[0] == plain
    assert blocks.read_header(plain).sums == {}


def test_the_header_says_what_is_in_the_block() -> None:
    data = blocks.encode(**bars(), level=SMALL)
    header = blocks.read_header(memoryview(data))
    assert (header.version, header.rows, header.stamp) == (1, 1_440, "")
    assert [column.name for column in header.columns[1:]] == [*bars()["values"]]
    assert [column.kind for column in header.columns] == [Kind.TIME] + [Kind.FLOAT] * 5
    assert header.block_size == len(data)
    assert blocks.decode(data).nbytes == 8 * 1_440 * 6


# -- what does not fit------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "categories", "message"),
    [
        ({"x": np.zeros(3)}, {}, "shape"),
        ({"x": np.zeros((2, 1))}, {}, "shape"),
        ({"x": np.zeros(2, np.float32)}, {}, "float32"),
        ({"x": np.zeros(2, ">f8")}, {}, "is >f8"),
        ({"x": np.zeros(2, np.int32)}, {}, "no names"),
        ({"x": np.ones(2, np.int32)}, {"x": ("a",)}, "codes 1 to 1 for 1 names"),
        ({"": np.zeros(2)}, {}, "without a name"),
        ({"x" * 70_000: np.zeros(2)}, {}, "too long"),
        ({str(i): np.zeros(2) for i in range(2_048)}, {}, "at most 2,048"),
    ],
)
def test_what_a_block_cannot_hold_is_refused(
    values: Any, categories: dict[str, tuple[str, ...]], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        blocks.encode(np.arange(2), values, categories)


@pytest.mark.parametrize(
    ("sums", "message"),
    [
        ({"x" * 70_000: 1.0}, "sum 'xxx.*too long"),
        ({str(i): 0.0 for i in range(2_049)}, "2,049 sums; a block holds at most 2,048"),
    ],
)
def test_sums_a_header_cannot_hold_are_refused(sums: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        blocks.encode_parts(np.arange(2), {}, {}, sums=sums)


def test_times_and_levels_are_checked() -> None:
    with pytest.raises(ValueError, match="float64"):
        blocks.encode(np.zeros(2), {}, {})  # type: ignore[arg-type]  # that is the point
    with pytest.raises(ValueError, match="level 13"):
        blocks.encode(np.arange(2), {}, {}, level=13)
    with pytest.raises(ValueError, match="at most 16,777,216"):
        blocks.encode(np.broadcast_to(np.int64(1), MAX_ROWS + 1), {}, {})


# -- docs/block-format.md -----------------------------------------------------------------------


def examples() -> list[str]:
    return _PYTHON.findall((PROJECT / "docs" / "block-format.md").read_text())


@pytest.mark.parametrize("sums", [{}, {"vwap.pv": 1.5, "vwap.v": -0.0, "": np.inf}])
@pytest.mark.parametrize("with_states", [True, False])
@pytest.mark.parametrize("level", [FAST, SMALL])
@pytest.mark.parametrize("rows", [0, 1, 5, 40, 1_440])
def test_the_reader_on_the_page_reads_all_kinds(
    rows: int, level: int, with_states: bool, sums: dict[str, float]
) -> None:
    namespace: dict[str, Any] = {}
    exec(compile(examples()[0], "block-format.md", "exec"), namespace)
    assert not any("toolkit" in getattr(v, "__name__", "") for v in namespace.values())
    sample = one_of_each(rows) if rows > 3 else cut(one_of_each(), rows)
    head, parts = blocks.encode_parts(**sample, level=level, with_states=with_states, sums=sums)
    stamp, values, categories = namespace["read_block"](head + b"".join(parts))
    assert stamp == sample["stamp"]
    assert categories == sample["categories"]
    assert list(values) == ["", *sample["values"]]
    assert same(values[""], sample["ts"])
    for name, column in sample["values"].items():
        assert same(values[name], column), name


def test_the_examples_on_the_page_hold() -> None:
    namespace: dict[str, Any] = {}
    for example in examples():
        exec(compile(example, "block-format.md", "exec"), namespace)
    assert {"read_block", "whole"} <= set(namespace)
