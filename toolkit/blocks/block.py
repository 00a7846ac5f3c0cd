"""Whole blocks: the rows of one series over one span as bytes and back."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from zlib import crc32

import numpy as np

from toolkit.blocks.codecs import FAST, pack_values, unpack_values_into
from toolkit.blocks.format import DTYPES, Array, DamagedBlock, Kind, check_extent
from toolkit.blocks.header import Column, Header, pack_header, unpack_header
from toolkit.blocks.states import states_of
from toolkit.columns import NULL_CODE, InBand
from toolkit.errors import UnknownName
from toolkit.timegrid import Instants

Names = tuple[str, ...]

_KIND_OF = {
    np.dtype(np.float64): Kind.FLOAT,
    np.dtype(np.int64): Kind.INT,
    np.dtype(np.int8): Kind.BOOL,
    np.dtype(np.int32): Kind.CATEGORY,
}
_COUNT = struct.Struct("<I")


@dataclass(frozen=True, slots=True, eq=False)
class Block:
    """Rows of one series, in the order they were given; arrays are read-only, NULLs in the band.

    ``categories`` holds the names of the category columns among ``values``; ``stamp`` is the
    text that was given to :func:`encode`. May be shared by threads.
    """

    ts: Instants
    values: Mapping[str, InBand]
    categories: Mapping[str, Names]
    stamp: str = ""

    def __len__(self) -> int:
        return len(self.ts)

    @property
    def nbytes(self) -> int:
        """What the arrays take in memory, in bytes."""
        return self.ts.nbytes + sum(values.nbytes for values in self.values.values())


def encode(
    ts: Instants,
    values: Mapping[str, InBand],
    categories: Mapping[str, Names],
    *,
    stamp: str = "",
    level: int = FAST,
    with_states: bool = False,
) -> bytes:
    """Return one block; the same rows always give the same bytes.

    ``ts`` are microseconds since 1970 in any order, ``values`` as many in-band each: float64,
    int64 (seq, decimals and times too), int8 for bool, int32 codes for a category, whose names
    are in ``categories``. Every bit survives, also of NaN and -0.0. ``level`` is 0 to 12, from
    fast to small: ``FAST`` takes about 30 µs a column of 1,440 floats, ``SMALL`` 55.
    ``with_states`` puts a column's states into the header. Raises ValueError for what a block
    cannot hold.
    """
    header, parts = encode_parts(
        ts, values, categories, stamp=stamp, level=level, with_states=with_states
    )
    return b"".join([header, *parts])


def encode_parts(
    ts: Instants,
    values: Mapping[str, InBand],
    categories: Mapping[str, Names],
    *,
    stamp: str = "",
    level: int = FAST,
    with_states: bool = True,
    sums: Mapping[str, float] = {},
) -> tuple[bytes, tuple[bytes, ...]]:
    """Return the header, and the bytes of the time and of each column; joined they are a block.

    For storing columns apart from each other: :func:`read_header` reads the one,
    :func:`decode_part` one of the others. ``sums`` stand in the header under their names.
    """
    if wrong := check_extent(len(ts), 1 + len(values)):
        raise ValueError(wrong)
    if not 0 <= level <= 12:
        raise ValueError(f"level {level}; there are 0 to 12")
    kinds = {name: _kind_of(name, column, len(ts)) for name, column in values.items()}
    if ts.dtype != np.int64 or ts.ndim != 1:
        raise ValueError(f"times are 1-D int64 microseconds, not {ts.ndim}-D {ts.dtype}")
    columns: list[Column] = []
    parts: list[bytes] = []
    for name, kind, column in [("", Kind.TIME, ts), *((n, kinds[n], v) for n, v in values.items())]:
        codec, part = pack_values(kind, column, level)
        if kind is Kind.CATEGORY:
            part = _pack_names(_names_of(name, column, categories)) + part
        states = states_of(kind, column) if with_states else None
        columns.append(Column(name, kind, codec, len(part), crc32(part), states))
        parts.append(part)
    return pack_header(len(ts), stamp, columns, sums), tuple(parts)


def read_header(data: bytes | memoryview) -> Header:
    """Return what a block, or its header alone, says of itself.

    Takes 9 µs for six columns, 14 with states. Raises DamagedBlock if the header is not as it was
    written; columns are not looked at.
    """
    return unpack_header(bytes(data))


def decode(data: bytes | memoryview, columns: Sequence[str] | None = None) -> Block:
    """Return a block's rows with all ``columns``, or the given ones in their order.

    A column that is not asked for is neither decoded nor checked. Raises DamagedBlock if the
    bytes are not one whole block, or those of a column asked for are not as they were written,
    and UnknownName for a column that the block does not have. About 9 µs a column of 1,440
    floats, and 12 more.
    """
    data = bytes(data)
    header = unpack_header(data)
    at = header.size
    parts: dict[str, tuple[Column, int]] = {}
    for column in header.columns:
        parts[column.name] = column, at
        at += column.size
    if at != len(data):
        raise DamagedBlock(f"{len(data)} bytes of a block of {at}")
    time, at = parts.pop("")
    ts, _ = _unpack_part(header.rows, time, data[at : at + time.size])
    values: dict[str, InBand] = {}
    categories: dict[str, Names] = {}
    for name in parts if columns is None else columns:
        if name not in parts:
            raise UnknownName("column", name, parts, "this block")
        column, at = parts[name]
        values[name], names = _unpack_part(header.rows, column, data[at : at + column.size])
        if names is not None:
            categories[name] = names
    return Block(ts, values, categories, header.stamp)


def decode_part(
    header: Header, column: Column, data: bytes | memoryview
) -> tuple[InBand, Names | None]:
    """Return the values of one of the ``header``'s columns, and a category's names.

    ``data`` is that column's part as :func:`encode_parts` returned it; raises DamagedBlock if
    it is not. The array is read-only. ``header.columns[0]`` is the time.
    """
    return _unpack_part(header.rows, column, bytes(data))


def decode_part_into(
    header: Header, column: Column, data: bytes | memoryview, out: InBand
) -> Names | None:
    """Write the values of one column over ``out``, and return a category's names.

    As :func:`decode_part`, without an array of its own: ``out`` is 1-D, contiguous, writable,
    of the column's type and of ``header.rows``, for instance a slice of a longer array; its
    codes are positions in the names returned. Where DamagedBlock is raised, what is in ``out``
    has no meaning. Nothing beside ``out`` is written: threads may fill slices of one array.
    """
    if out.shape != (header.rows,) or out.dtype != DTYPES[column.kind] or not out.flags.carray:
        raise ValueError(
            f"column {column.name or 'ts'!r} needs {header.rows} {DTYPES[column.kind]} in a row, "
            f"writable; {out.dtype} of shape {out.shape} was given"
        )
    return _unpack_part_into(column, bytes(data), out)


def _unpack_part(rows: int, column: Column, data: bytes) -> tuple[Array, Names | None]:
    values = np.empty(rows, DTYPES[column.kind])
    names = _unpack_part_into(column, data, values)
    values.setflags(write=False)
    return values, names


def _unpack_part_into(column: Column, data: bytes, out: Array) -> Names | None:
    if len(data) != column.size or crc32(data) != column.checksum:
        raise DamagedBlock(f"column {column.name or 'ts'!r}: the checksum does not match")
    if column.kind is not Kind.CATEGORY:
        unpack_values_into(column.kind, column.codec, data, out)
        return None
    names, at = _unpack_names(data)
    unpack_values_into(column.kind, column.codec, data[at:], out)
    if problem := _wrong_code(out, names):
        raise DamagedBlock(f"column {column.name!r}: {problem}")
    return names


def _kind_of(name: str, values: InBand, rows: int) -> Kind:
    kind = _KIND_OF.get(values.dtype)
    if kind is None:
        raise ValueError(f"column {name!r} is {values.dtype}; float64, int64, int8 or int32 fit")
    if values.shape != (rows,):
        raise ValueError(f"column {name!r} has the shape {values.shape} for {rows} times")
    if not name:
        raise ValueError("a column without a name; the empty name is the time's")
    return kind


def _names_of(name: str, codes: Array, categories: Mapping[str, Names]) -> Names:
    if name not in categories:
        raise ValueError(f"column {name!r} has int32 codes, and there are no names for them")
    if problem := _wrong_code(codes, categories[name]):
        raise ValueError(f"column {name!r}: {problem}")
    return categories[name]


def _wrong_code(codes: Array, names: Names) -> str:
    if not len(codes) or (codes.min() >= NULL_CODE and codes.max() < len(names)):
        return ""
    return f"codes {codes.min()} to {codes.max()} for {len(names)} names"


def _pack_names(names: Names) -> bytes:
    texts = [name.encode() for name in names]
    lengths = np.array([len(text) for text in texts], "<u4")
    return b"".join([_COUNT.pack(len(texts)), lengths.tobytes(), *texts])


def _unpack_names(data: bytes) -> tuple[Names, int]:
    """Return the names with which a category's bytes begin, and where its codes begin."""
    at = _COUNT.size
    if len(data) < at or len(data) < (at := at + 4 * _COUNT.unpack_from(data)[0]):
        raise DamagedBlock("a category without its names")
    names = []
    for length in np.frombuffer(data[_COUNT.size : at], "<u4").tolist():
        names.append(data[at : at + length])
        at += length
    if at > len(data):
        raise DamagedBlock("a category without its names")
    try:
        return tuple(name.decode() for name in names), at
    except UnicodeDecodeError as error:
        raise DamagedBlock("a name that is not UTF-8") from error
