"""Stored blocks: parts one by one, into their places, and noticed where they do not belong."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from fix_blocks import Array, bars, inputs, one_of_each, same
from hypothesis import given, settings
from hypothesis import strategies as st

from toolkit import blocks
from toolkit.blocks import FAST, SMALL, DamagedBlock, identity

DTYPES = (np.int64, np.float64, np.int64, np.int8, np.int32)
CANDLES = identity("candles", 17, -5, 1_704_067_200_000_000)


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


# -- into place ---------------------------------------------------------------------------------


@settings(deadline=None)
@given(inputs(), st.sampled_from([FAST, SMALL]), st.integers(0, 3))
def test_a_part_is_written_into_a_slice_and_nowhere_else(
    sample: dict[str, Any], level: int, before: int
) -> None:
    head, parts = blocks.encode_parts(**sample, level=level)
    header = blocks.read_header(head)
    for column, part in zip(header.columns, parts, strict=True):
        wanted = sample["values"].get(column.name, sample["ts"])
        room = np.full(header.rows + 8, 77, DTYPES[column.kind])
        place = room[before : before + header.rows]
        names = blocks.decode_part_into(header, column, memoryview(part), place)
        assert names == sample["categories"].get(column.name)
        assert same(place, wanted)
        assert (room[:before] == 77).all()
        assert (room[before + header.rows :] == 77).all()


def test_the_blocks_of_a_series_come_to_one_array() -> None:
    sample = bars(10_000)
    close = sample["values"]["close"]
    out = np.empty(10_000)
    for lo, hi in ((0, 3_000), (3_000, 3_001), (3_001, 10_000)):
        head, parts = blocks.encode_parts(sample["ts"][lo:hi], {"close": close[lo:hi]}, {})
        header = blocks.read_header(head)
        assert blocks.decode_part_into(header, header.columns[1], parts[1], out[lo:hi]) is None
    assert same(out, close)


def read_only(rows: int) -> Array:
    values = np.empty(rows)
    values.setflags(write=False)
    return values


@pytest.mark.parametrize(
    "out",
    [
        np.empty(89),
        np.empty(91),
        np.empty((90, 1)),
        np.empty(90, np.int64),
        np.empty(90, ">f8"),
        np.empty(180)[::2],
        np.empty(90)[::-1],
        np.empty(90 * 8 + 1, np.uint8)[1:].view(np.float64),
        read_only(90),
    ],
    ids=["short", "long", "2-D", "int64", ">f8", "strided", "backwards", "unaligned", "read-only"],
)
def test_a_place_that_does_not_fit_is_refused(out: Array) -> None:
    head, parts = blocks.encode_parts(**one_of_each(90))
    header = blocks.read_header(head)
    with pytest.raises(ValueError, match="column 'price' needs 90 float64 in a row, writable"):
        blocks.decode_part_into(header, header.columns[1], parts[1], out)


def test_a_damaged_part_is_refused_on_its_way_into_place() -> None:
    head, parts = blocks.encode_parts(**one_of_each(90))
    header = blocks.read_header(head)
    for column, part in zip(header.columns, parts, strict=True):
        out = np.full(90, 77, DTYPES[column.kind])
        for at in range(len(part)):
            damaged = part[:at] + bytes([part[at] ^ 1 << at % 8]) + part[at + 1 :]
            for wrong in (damaged, part[:at]):
                with pytest.raises(DamagedBlock, match="checksum"):
                    blocks.decode_part_into(header, column, wrong, out)
        assert (out == 77).all()  # it was not even begun


# -- whose it is --------------------------------------------------------------------------------


def test_a_header_says_whose_block_it_is() -> None:
    assert CANDLES == "candles 17 -5 1704067200000000"
    head, _ = blocks.encode_parts(**one_of_each() | {"stamp": CANDLES}, sums={"pv": 2.5})
    header = blocks.read_stored_header(memoryview(head), CANDLES)
    assert header == blocks.read_header(head)
    assert header.sums == {"pv": 2.5}


@pytest.mark.parametrize(
    "other",
    [
        identity("candles", 18, -5, 1_704_067_200_000_000),
        identity("candles", 17, -6, 1_704_067_200_000_000),
        identity("candles", 17, -5, 1_704_067_200_000_001),
        identity("candles 17", -5, 1_704_067_200_000_000, 0),
        identity("candle", 17, -5, 1_704_067_200_000_000),
        "",
        "x" * 1_000,
    ],
)
def test_a_whole_block_in_anothers_place_is_noticed(other: str) -> None:
    head, _ = blocks.encode_parts(**one_of_each() | {"stamp": other})
    with pytest.raises(DamagedBlock, match=f"belongs to .*, not to '{CANDLES}'") as raised:
        blocks.read_stored_header(head, CANDLES)
    assert len(str(raised.value)) < 250


def test_a_damaged_header_is_no_ones() -> None:
    head, _ = blocks.encode_parts(**one_of_each(20) | {"stamp": CANDLES}, sums={"pv": 2.5})
    for at in range(len(head)):
        for bit in range(8):
            damaged = bytearray(head)
            damaged[at] ^= 1 << bit
            with pytest.raises(DamagedBlock):
                blocks.read_stored_header(damaged, CANDLES)
        with pytest.raises(DamagedBlock):
            blocks.read_stored_header(head[:at], CANDLES)


@settings(deadline=None)
@given(inputs(), inputs(), st.data())
def test_a_part_in_anothers_place_is_noticed_or_the_same(
    one: dict[str, Any], other: dict[str, Any], data: st.DataObject
) -> None:
    head, parts = blocks.encode_parts(**one)
    header = blocks.read_header(head)
    parts += blocks.encode_parts(**other)[1]
    for column in header.columns:
        try:
            values, names = blocks.decode_part(header, column, data.draw(st.sampled_from(parts)))
        except DamagedBlock:
            continue
        assert same(np.asarray(values), one["values"].get(column.name, one["ts"]))
        assert names == one["categories"].get(column.name)
