"""The binary COPY stream, read back by a decoder that shares nothing with the encoder."""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from toolkit.columns import NULL_BOOL, NULL_CODE, NULL_INT
from toolkit.dataset import CANDLES, TRADES, Aggregate, Column, Dataset
from toolkit.ingest.copybinary import encode
from toolkit.ingest.frames import Batch, arrange, to_batch

MIXED = Dataset(
    "mixed",
    (
        Column("x"),
        Column("n", "int"),
        Column("flag", "bool"),
        Column("side", "category"),
        Column("venue", "category"),
        Column("fee", "decimal(2)"),
    ),
    (Aggregate("x", "last", ("x",)),),
    has_seq=True,
)
IDS = np.array([7, 2**31 - 1, 1], dtype=np.int32)


def decode(stream: bytes) -> list[list[bytes | None]]:
    assert stream[:11] == b"PGCOPY\n\xff\r\n\0"
    flags, extension = struct.unpack_from(">ii", stream, 11)
    assert (flags, extension) == (0, 0)
    at, rows = 19, []
    while True:
        (fields,) = struct.unpack_from(">h", stream, at)
        at += 2
        if fields == -1:
            assert at == len(stream)
            return rows
        row: list[bytes | None] = []
        for _ in range(fields):
            (length,) = struct.unpack_from(">i", stream, at)
            at += 4
            row.append(None if length == -1 else stream[at : at + length])
            at += max(length, 0)
        rows.append(row)


def stream_of(batch: Batch, columns: Sequence[str], *, with_seq: bool, rows: int = 3) -> bytes:
    return b"".join(encode(batch, IDS, columns, with_seq=with_seq, rows_per_piece=rows))


def instant(field: bytes | None) -> datetime:
    assert field is not None
    (us,) = struct.unpack(">q", field)
    return datetime(2000, 1, 1, tzinfo=UTC) + timedelta(microseconds=us)


def test_an_empty_batch_is_a_header_and_a_trailer() -> None:
    assert decode(stream_of(to_batch(CANDLES, {}), CANDLES.names, with_seq=False)) == []


@pytest.mark.parametrize(
    "moment",
    ["1900-01-01", "1960-02-29T12:00", "1969-12-31T23:59:59.999999", "1999-12-31", "2099-12-31"],
)
def test_trap_2_instants_before_1970_and_2000_are_kept(moment: str) -> None:
    ts = np.array([moment], dtype="M8[us]")
    batch = to_batch(CANDLES, {"ts": ts}, series="A")
    rows = decode(stream_of(batch, (), with_seq=False))
    assert instant(rows[0][1]) == datetime.fromisoformat(moment).replace(tzinfo=UTC)


def test_columns_come_in_the_order_asked_for() -> None:
    frame = {"ts": np.array([0], "M8[us]"), "open": [1.0], "close": [4.0]}
    rows = decode(
        stream_of(to_batch(CANDLES, frame, series="A"), ["close", "open"], with_seq=False)
    )
    assert [struct.unpack(">d", f)[0] for f in rows[0][2:] if f] == [4.0, 1.0]


def test_a_null_in_one_piece_does_not_leak_into_the_next() -> None:
    close = [1.0, math.nan, 3.0, 4.0, 5.0, 6.0]
    frame = {"ts": np.arange(6).view("M8[us]"), "close": close}
    batch = to_batch(CANDLES, frame, series="A")
    rows = decode(stream_of(batch, ["close"], with_seq=False, rows=2))
    assert [None if r[2] is None else struct.unpack(">d", r[2])[0] for r in rows] == [
        1.0,
        None,
        *close[2:],
    ]


def test_trap_36_every_row_has_every_field_when_whole_columns_are_null() -> None:
    frame = {"ts": np.arange(4).view("M8[us]"), "close": [1.0, 2.0, 3.0, 4.0]}
    rows = decode(stream_of(to_batch(CANDLES, frame, series="A"), CANDLES.names, with_seq=False))
    assert [len(row) for row in rows] == [7] * 4
    assert all(row[2:5] == [None, None, None] and row[6] is None for row in rows)


def test_trades_are_numbered_and_carry_their_side() -> None:
    frame = {
        "ts": np.array([5, 5, 5], "M8[us]"),
        "price": [1.0, 2.0, 3.0],
        "size": [1, 1, 1],
        "side": ["buy", None, "sell"],
    }
    batch = arrange(to_batch(TRADES, frame, series="A")).batch
    rows = decode(stream_of(batch, TRADES.names, with_seq=True))
    assert [struct.unpack(">q", row[2] or b"")[0] for row in rows] == [0, 1, 2]
    assert [row[5] for row in rows] == [b"buy", None, b"sell"]


def test_a_very_long_text_stays_within_bounded_pieces() -> None:
    texts = ["x" * 200_000, "y"]
    codes = np.arange(500, dtype=np.int32) % 2
    batch = Batch(
        Dataset("notes", (Column("note", "category"),), (), ladder=()),
        ("A",),
        np.zeros(500, np.int32),
        np.arange(500),
        None,
        {"note": codes},
        {"note": tuple(texts)},
    )
    pieces = list(encode(batch, IDS, ["note"], with_seq=False))
    assert max(map(len, pieces)) <= 17 << 20
    assert [row[2] for row in decode(b"".join(pieces))] == [texts[c].encode() for c in codes]


ints = st.none() | st.integers(NULL_INT + 1, 2**63 - 1)
texts = st.none() | st.text(
    st.characters(exclude_characters="\0", exclude_categories=("Cs",)), max_size=5
)
rows_of_any_kind = st.lists(
    st.tuples(
        st.integers(0, 2),
        st.integers(-2_208_988_800_000_000, 4_102_444_799_999_999),
        st.none() | st.floats(width=64, allow_subnormal=True),
        ints,
        st.none() | st.booleans(),
        texts,
        st.sampled_from([None, "🚀", "%s; '\"\\"]),
        ints,
    ),
    max_size=12,
)


@given(rows_of_any_kind, st.integers(1, 5))
def test_every_value_arrives_bit_for_bit(rows: list[tuple], size: int) -> None:
    series, ts, x, n, flag, side, venue, fee = ([row[i] for row in rows] for i in range(8))

    def coded(values: list[str | None]) -> tuple[np.ndarray, tuple[str, ...]]:
        names = tuple(dict.fromkeys(v for v in values if v is not None))
        codes = [NULL_CODE if v is None else names.index(v) for v in values]
        return np.array(codes, dtype=np.int32), names

    (sides, side_names), (venues, venue_names) = coded(side), coded(venue)
    batch = Batch(
        MIXED,
        ("A", "B", "C"),
        np.array(series, dtype=np.int32),
        np.array(ts, dtype=np.int64),
        np.arange(len(rows)),
        {
            "x": np.array([math.nan if v is None else v for v in x], dtype=np.float64),
            "n": np.array([NULL_INT if v is None else v for v in n], dtype=np.int64),
            "flag": np.array([NULL_BOOL if v is None else v for v in flag], dtype=np.int8),
            "side": sides,
            "venue": venues,
            "fee": np.array([NULL_INT if v is None else v for v in fee], dtype=np.int64),
        },
        {"side": side_names, "venue": venue_names},
    )

    def packed(form: str, value: object) -> bytes | None:
        is_nan = isinstance(value, float) and math.isnan(value)
        return None if value is None or is_nan else struct.pack(form, value)

    def text(value: str | None) -> bytes | None:
        return None if value is None else value.encode()

    expected = [
        [
            struct.pack(">i", IDS[series[i]]),
            struct.pack(">q", ts[i] - 946_684_800_000_000),
            struct.pack(">q", i),
            packed(">d", x[i]),
            packed(">q", n[i]),
            packed(">?", flag[i]),
            text(side[i]),
            text(venue[i]),
            packed(">q", fee[i]),
        ]
        for i in range(len(rows))
    ]
    assert decode(stream_of(batch, MIXED.names, with_seq=True, rows=size)) == expected
