"""Damage: bytes that are not a whole block are refused, whatever they are."""

from __future__ import annotations

import random
import struct
import tracemalloc
from collections.abc import Sequence
from contextlib import suppress
from typing import Any
from zlib import crc32

import numpy as np
import pytest
from fix_blocks import Array, bars, one_of_each
from hypothesis import given, settings
from hypothesis import strategies as st

from toolkit import blocks
from toolkit.blocks import DamagedBlock
from toolkit.blocks.format import MAX_ROWS

SUMS = {"vwap.pv": 1.5, "vwap.v": 2.5}


def whole(**more: Any) -> bytes:
    head, parts = blocks.encode_parts(**one_of_each() | more, sums=SUMS)
    return head + b"".join(parts)


def test_a_flipped_bit_is_always_seen() -> None:
    data = whole()
    for bit in range(8 * len(data)):
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(DamagedBlock):
            blocks.decode(damaged)


def test_a_block_that_is_cut_or_goes_on_is_damaged() -> None:
    data = whole()
    for end in range(len(data)):
        with pytest.raises(DamagedBlock):
            blocks.decode(data[:end])
    for more in (b"\0", data, bytes(1_000)):
        with pytest.raises(DamagedBlock):
            blocks.decode(data + more)


@given(st.binary(max_size=300), st.integers(0, 60))
def test_random_bytes_are_damaged(noise: bytes, kept: int) -> None:
    head, parts = blocks.encode_parts(**one_of_each(), sums=SUMS)
    header = blocks.read_header(head)
    for damaged in (noise, head[:kept] + noise):
        with pytest.raises(DamagedBlock):
            blocks.decode(damaged)
        with pytest.raises(DamagedBlock):
            blocks.read_header(damaged)
    for column, part in zip(header.columns, parts, strict=True):
        for damaged in (noise, part[:kept] + noise):
            if damaged != part:
                with pytest.raises(DamagedBlock):
                    blocks.decode_part(header, column, damaged)


# -- bytes changed under checksums that match: no other error, and no more memory than allowed --


def repaired(head: bytes, parts: Sequence[bytes], rows: int | None = None) -> bytes:
    """A block of these bytes with all its checksums made right, and its own size."""
    header = bytearray(head[:-4])
    for number, part in enumerate(parts):
        struct.pack_into("<II", header, 20 + 12 * number + 4, len(part), crc32(part))
    struct.pack_into("<I", header, 8, len(head))
    if rows is not None:
        struct.pack_into("<I", header, 12, rows)
    return bytes(header) + crc32(header).to_bytes(4, "little") + b"".join(parts)


def spoil(piece: bytearray, changes: Sequence[tuple[int, int]]) -> None:
    for at, value in changes:
        if piece:
            piece[at % len(piece)] = value


CHANGES = st.lists(
    st.tuples(
        # where lengths and codecs stand, or anywhere
        st.one_of(st.integers(0, 40), st.integers(0, 5_000)),
        st.one_of(st.sampled_from([0, 1, 2, 3, 4, 127, 128, 255]), st.integers(0, 255)),
    ),
    min_size=1,
    max_size=4,
)


@settings(max_examples=400, deadline=None)
@given(st.data(), st.sampled_from([3, 20, 90]), st.booleans())
def test_forged_parts_are_refused_or_read(data: st.DataObject, rows: int, cut: bool) -> None:
    sample = one_of_each(90)
    values = {name: column[:rows] for name, column in sample["values"].items()}
    head, parts = blocks.encode_parts(**sample | {"ts": sample["ts"][:rows], "values": values})
    pieces = [bytearray(part) for part in parts]
    piece = data.draw(st.sampled_from(pieces))
    spoil(piece, data.draw(CHANGES))
    if cut:
        del piece[data.draw(st.integers(0, len(piece))) :]
    with suppress(DamagedBlock):
        block = blocks.decode(repaired(head, pieces))
        assert len(block) == rows
        assert all(len(column) == rows for column in block.values.values())


@settings(max_examples=400, deadline=None)
@given(CHANGES, st.booleans())
def test_forged_headers_are_refused_or_read(
    changes: list[tuple[int, int]], with_states: bool
) -> None:
    head, parts = blocks.encode_parts(**one_of_each(), with_states=with_states, sums=SUMS)
    header = bytearray(head)
    spoil(header, changes)
    rows = min(struct.unpack_from("<I", header, 12)[0], 9_999)
    with suppress(DamagedBlock):
        forged = repaired(bytes(header), parts, rows)
        said = blocks.read_header(forged)
        assert said.rows == rows
        assert len(said.sums) in (0, 2)
        assert len(blocks.decode(forged)) == rows


@settings(max_examples=200, deadline=None)
@given(st.permutations(range(8)))
def test_parts_that_changed_places_are_refused_or_read(order: list[int]) -> None:
    head, parts = blocks.encode_parts(**one_of_each())
    with suppress(DamagedBlock):
        assert len(blocks.decode(repaired(head, [parts[at] for at in order]))) == 90


def test_many_forged_blocks_are_refused_or_read() -> None:
    chance = random.Random(5)
    head, parts = blocks.encode_parts(**one_of_each(), sums=SUMS)
    for _ in range(6_000):
        pieces = [bytearray(piece) for piece in (head, *parts)]
        for _ in range(chance.randint(1, 3)):
            spoil(chance.choice(pieces), [(chance.randrange(9_999), chance.choice([0, 1, 2, 255]))])
        rows = min(struct.unpack_from("<I", pieces[0], 12)[0], 9_999)
        with suppress(DamagedBlock):
            assert len(blocks.decode(repaired(bytes(pieces[0]), pieces[1:], rows))) <= 9_999


@pytest.mark.parametrize("values", [np.zeros(90), np.arange(90) % 7 / 4, np.arange(90)])
def test_what_a_few_bytes_make_a_reader_allocate_is_bounded(values: Array) -> None:
    head, parts = blocks.encode_parts(np.arange(90), {"x": values}, {})
    forged = repaired(head, parts, MAX_ROWS)
    tracemalloc.start()
    try:
        with suppress(DamagedBlock):
            blocks.decode(forged, ["x"])
        assert tracemalloc.get_traced_memory()[1] < 3.1 * 8 * MAX_ROWS
    finally:
        tracemalloc.stop()


def test_forged_sums_are_refused() -> None:
    head, parts = blocks.encode_parts(np.arange(9), {}, {}, with_states=False, sums=SUMS)
    at = 20 + 12
    assert struct.unpack_from("<HdH", head, at) == (2, 1.5, len("vwap.pv"))
    for form, place, value in (
        ("H", at, 0),
        ("H", at, 1),
        ("H", at, 3),
        ("H", at, 60_000),
        ("H", at + 10, 60_000),
        ("H", at + 20, 5),
        ("B", at + 22, 255),
        ("B", 5, 0),
        ("B", 5, 6),
    ):
        header = bytearray(head)
        struct.pack_into(f"<{form}", header, place, value)
        with pytest.raises(DamagedBlock, match=r"add up|UTF-8"):
            blocks.read_header(repaired(bytes(header), parts))
    twice, _ = blocks.encode_parts(np.arange(9), {}, {}, with_states=False, sums={"a": 1, "b": 2})
    with pytest.raises(DamagedBlock, match="two sums of one name"):
        blocks.read_header(repaired(twice.replace(b"ab", b"aa"), parts))


@pytest.mark.parametrize(
    ("at", "form", "value", "message"),
    [
        (5, "B", 4, "add up"),
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
