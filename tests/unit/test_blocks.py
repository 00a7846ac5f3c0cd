"""Blocks: every bit survives, damage is always seen, and the page on the format is true."""

from __future__ import annotations

import random
import re
import struct
from collections.abc import Mapping
from contextlib import suppress
from typing import Any
from zlib import crc32

import numpy as np
import numpy.typing as npt
import pytest
from fix_servers import PROJECT
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from toolkit import blocks
from toolkit.blocks import FAST, SMALL, DamagedBlock
from toolkit.blocks.format import MAX_ROWS, Codec, Kind
from toolkit.columns import NULL_BOOL, NULL_CODE, NULL_INT
from toolkit.errors import UnknownName

Array = npt.NDArray[Any]
INT64 = st.integers(-(2**63), 2**63 - 1)
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
MINUTE = 60_000_000
YEAR_2024 = 1_704_067_200_000_000
_PYTHON = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


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


def cut(sample: dict[str, Any], rows: int) -> dict[str, Any]:
    values = {name: column[:rows] for name, column in sample["values"].items()}
    return sample | {"ts": sample["ts"][:rows], "values": values}


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


def test_parts_are_read_one_by_one() -> None:
    sample = one_of_each()
    head, parts = blocks.encode_parts(**sample)
    header = blocks.read_header(head)
    assert header == blocks.read_header(head + b"".join(parts))
    assert header.block_size == len(head) + sum(map(len, parts))
    for column, part in zip(header.columns, parts, strict=True):
        values, names = blocks.decode_part(header, column, memoryview(part))
        wanted = sample["values"].get(column.name, sample["ts"])
        assert same(np.asarray(values), wanted)
        assert names == sample["categories"].get(column.name)
        with pytest.raises(DamagedBlock, match="checksum"):
            blocks.decode_part(header, column, part + b"\0")


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


def test_the_header_says_what_is_in_the_block() -> None:
    data = blocks.encode(**bars(), level=SMALL)
    header = blocks.read_header(memoryview(data))
    assert (header.version, header.rows, header.stamp) == (1, 1_440, "")
    assert [column.name for column in header.columns[1:]] == [*bars()["values"]]
    assert [column.kind for column in header.columns] == [Kind.TIME] + [Kind.FLOAT] * 5
    assert header.block_size == len(data)
    assert blocks.decode(data).nbytes == 8 * 1_440 * 6


# -- damage -------------------------------------------------------------------------------------


def test_a_flipped_bit_is_always_seen() -> None:
    data = blocks.encode(**one_of_each(), with_states=True)
    for bit in range(8 * len(data)):
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(DamagedBlock):
            blocks.decode(damaged)


def test_a_block_that_is_cut_or_goes_on_is_damaged() -> None:
    data = blocks.encode(**one_of_each())
    for end in range(len(data)):
        with pytest.raises(DamagedBlock):
            blocks.decode(data[:end])
    for more in (b"\0", data, bytes(1_000)):
        with pytest.raises(DamagedBlock):
            blocks.decode(data + more)


@given(st.binary(max_size=300), st.integers(0, 60))
def test_random_bytes_are_damaged(noise: bytes, kept: int) -> None:
    data = blocks.encode(**one_of_each())
    for damaged in (noise, data[:kept] + noise):
        with pytest.raises(DamagedBlock):
            blocks.decode(damaged)


def test_forged_blocks_are_refused_or_read() -> None:
    """Bytes changed under checksums that match: no other error, and no more memory than allowed."""
    chance = random.Random(5)
    head, parts = blocks.encode_parts(**one_of_each())
    for _ in range(6_000):
        pieces = [bytearray(piece) for piece in (head[:-4], *parts)]
        for _ in range(chance.randint(1, 3)):
            piece = chance.choice(pieces)
            piece[chance.randrange(len(piece))] = chance.choice([0, 1, 2, 3, 4, 255, 128])
        header = pieces[0]
        for number, part in enumerate(pieces[1:]):
            struct.pack_into("<I", header, 20 + 12 * number + 8, crc32(part))
        struct.pack_into("<I", header, 8, len(head))
        struct.pack_into("<I", header, 12, min(struct.unpack_from("<I", header, 12)[0], 9_999))
        forged = header + crc32(header).to_bytes(4, "little") + b"".join(pieces[1:])
        with suppress(DamagedBlock):
            assert len(blocks.decode(forged)) <= 9_999


@pytest.mark.parametrize(
    ("at", "form", "value", "message"),
    [
        (5, "B", 2, "add up"),
        (6, "H", 0, "add up"),
        (12, "I", MAX_ROWS + 1, "at most 16,777,216"),
        (12, "I", MAX_ROWS, "values"),
        (16, "I", 2**32 - 1, "add up"),
        (20, "B", 1, "kind 1 and codec"),
        (32, "B", 0, "kind 0 and codec"),
        (32, "B", 9, "kind 9 and codec"),
        (33, "B", 2, "codec 2"),
        (34, "H", 60_000, "UTF-8|names"),
    ],
)
def test_declared_counts_are_checked_first(at: int, form: str, value: int, message: str) -> None:
    head, parts = blocks.encode_parts(**one_of_each(), with_states=False)
    header = bytearray(head[:-4])
    struct.pack_into(f"<{form}", header, at, value)
    forged = bytes(header) + crc32(header).to_bytes(4, "little") + b"".join(parts)
    with pytest.raises(DamagedBlock, match=message):
        blocks.decode(forged)


def test_another_version_is_named() -> None:
    data = bytearray(blocks.encode(**bars(20)))
    data[4] = 7
    with pytest.raises(DamagedBlock, match="a block of version 7; this code reads version 1"):
        blocks.decode(data)
    with pytest.raises(DamagedBlock, match="do not begin as a block"):
        blocks.read_header(b"")


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


def test_times_and_levels_are_checked() -> None:
    with pytest.raises(ValueError, match="float64"):
        blocks.encode(np.zeros(2), {}, {})  # type: ignore[arg-type]  # that is the point
    with pytest.raises(ValueError, match="level 13"):
        blocks.encode(np.arange(2), {}, {}, level=13)
    with pytest.raises(ValueError, match="at most 16,777,216"):
        blocks.encode(np.broadcast_to(np.int64(1), MAX_ROWS + 1), {}, {})


# -- docs/block-format.md -----------------------------------------------------------------------


@pytest.mark.parametrize("with_states", [True, False])
@pytest.mark.parametrize("level", [FAST, SMALL])
@pytest.mark.parametrize("rows", [0, 1, 5, 40, 1_440])
def test_the_reader_on_the_page_reads_all_kinds(rows: int, level: int, with_states: bool) -> None:
    page = (PROJECT / "docs" / "block-format.md").read_text()
    namespace: dict[str, Any] = {}
    exec(compile(_PYTHON.findall(page)[0], "block-format.md", "exec"), namespace)
    assert not any("toolkit" in getattr(v, "__name__", "") for v in namespace.values())
    sample = one_of_each(rows) if rows > 3 else cut(one_of_each(), rows)
    data = blocks.encode(**sample, level=level, with_states=with_states)
    stamp, values, categories = namespace["read_block"](data)
    assert stamp == sample["stamp"]
    assert categories == sample["categories"]
    assert list(values) == ["", *sample["values"]]
    assert same(values[""], sample["ts"])
    for name, column in sample["values"].items():
        assert same(values[name], column), name
