"""The head of a block: what its columns are called, how they are written and how long they are."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple
from zlib import crc32

from toolkit.blocks.format import (
    MAGIC,
    MAX_COLUMNS,
    VERSION,
    WHOLE,
    Codec,
    DamagedBlock,
    Kind,
    check_extent,
)
from toolkit.blocks.states import SIZE as STATES_SIZE
from toolkit.blocks.states import States, pack_states, unpack_states
from toolkit.errors import shorten

_PREFIX = struct.Struct("<4sBBHIII")  # magic, version, flags, columns, size, rows, stamp's length
_COLUMN = struct.Struct("<BBHII")  # kind, codec, name's length, size, checksum
_CRC = struct.Struct("<I")
_SUMS = struct.Struct("<H")  # how many
_SUM = struct.Struct("<dH")  # the sum, its name's length
_HAS_STATES = 1
_HAS_SUMS = 2
_ALL_FLAGS = _HAS_STATES | _HAS_SUMS
_LONGEST_NAME = 2**16 - 1
_LARGEST = 2**32 - 1
# one look-up by two plain numbers: enums are slow to make and to compare
_KNOWN = {
    (int(kind), int(codec)): (kind, codec)
    for kind in Kind
    for codec in Codec
    if codec is not Codec.LINEAR or kind in WHOLE
}


class Column(NamedTuple):  # a tuple is made five times as fast as a frozen dataclass
    """One column of a block; ``size`` and ``checksum`` (CRC-32) are those of its bytes."""

    name: str
    kind: Kind
    codec: Codec
    size: int
    checksum: int
    states: States | None = None


@dataclass(frozen=True, slots=True)
class Header:
    """What a block says of itself; ``size`` is the header's own in bytes.

    ``columns`` are in the order of their bytes, the time first, under the empty name; ``sums``
    are over all rows, of whatever their names mean to who wrote the block.
    """

    version: int
    rows: int
    stamp: str
    columns: tuple[Column, ...]
    size: int
    sums: Mapping[str, float] = field(default_factory=dict)

    @property
    def block_size(self) -> int:
        """The size of the block, header and columns, in bytes."""
        return self.size + sum(column.size for column in self.columns)


def pack_header(
    rows: int, stamp: str, columns: Sequence[Column], sums: Mapping[str, float] = {}
) -> bytes:
    """Return the header's bytes; all columns have states, or none has."""
    text = stamp.encode()
    table, names, states = [], [], []
    for name, kind, codec, size, checksum, said in columns:
        encoded = _encoded("column", name)
        if size > _LARGEST:
            raise ValueError(f"column {shorten(name)} is too long for a block")
        table.append(_COLUMN.pack(kind, codec, len(encoded), size, checksum))
        names.append(encoded)
        if said is not None:
            states.append(pack_states(kind, said))
    body = b"".join([*table, *states, text, *names, _pack_sums(sums)])
    prefix = _PREFIX.pack(
        MAGIC,
        VERSION,
        (_HAS_STATES if states else 0) | (_HAS_SUMS if sums else 0),
        len(columns),
        _PREFIX.size + len(body) + _CRC.size,
        rows,
        len(text),
    )
    return prefix + body + _CRC.pack(crc32(body, crc32(prefix)))


def _pack_sums(sums: Mapping[str, float]) -> bytes:
    if not sums:
        return b""
    if len(sums) > MAX_COLUMNS:
        raise ValueError(f"{len(sums):,} sums; a block holds at most {MAX_COLUMNS:,}")
    names = [_encoded("sum", name) for name in sums]
    pairs = zip(sums.values(), names, strict=True)
    table = [_SUM.pack(value, len(name)) for value, name in pairs]
    return b"".join([_SUMS.pack(len(names)), *table, *names])


def _encoded(what: str, name: str) -> bytes:
    encoded = name.encode()
    if len(encoded) > _LONGEST_NAME:
        raise ValueError(f"{what} {shorten(name)}: the name is too long for a block")
    return encoded


def unpack_header(data: bytes) -> Header:
    """Return the header with which ``data`` begins, or raise DamagedBlock.

    What follows the header is not looked at. Nothing is believed before the checksum held.
    """
    if len(data) < _PREFIX.size or data[:4] != MAGIC:
        raise DamagedBlock(f"{len(data)} bytes that do not begin as a block does")
    _, version, flags, count, size, rows, stamp_size = _PREFIX.unpack_from(data)
    if version != VERSION:
        raise DamagedBlock(f"a block of version {version}; this code reads version {VERSION}")
    end = size - _CRC.size
    if not _PREFIX.size <= end <= len(data) - _CRC.size:
        raise DamagedBlock(f"a header of {size} bytes in {len(data)} bytes")
    if crc32(data[:end]) != _CRC.unpack_from(data, end)[0]:
        raise DamagedBlock("the header's checksum does not match")
    states_at = _PREFIX.size + count * _COLUMN.size
    stamp_at = states_at + (count * STATES_SIZE if flags & _HAS_STATES else 0)
    names_at = stamp_at + stamp_size
    if flags > _ALL_FLAGS or not count or names_at > end:
        raise DamagedBlock("a header that does not add up")
    if wrong := check_extent(rows, count):
        raise DamagedBlock(wrong)
    try:
        columns, at = _columns(data, states_at, stamp_at, names_at)
        sums, at = _sums(data, at, end) if flags & _HAS_SUMS else ({}, at)
        stamp = data[stamp_at:names_at].decode()
    except UnicodeDecodeError as error:
        raise DamagedBlock("a text that is not UTF-8") from error
    if at != end:
        raise DamagedBlock("names that do not add up")
    return Header(version, rows, stamp, columns, size, sums)


def _columns(
    data: bytes, states_at: int, states_end: int, at: int
) -> tuple[tuple[Column, ...], int]:
    """Return the columns, whose names begin ``at``, and where these end."""
    columns: list[Column] = []
    states = None
    for kind, codec, length, size, checksum in _COLUMN.iter_unpack(data[_PREFIX.size : states_at]):
        known = _KNOWN.get((kind, codec))
        if known is None or bool(kind) is not bool(columns):  # the time, 0, comes first
            raise DamagedBlock(f"a column of kind {kind} and codec {codec} in this place")
        name = data[at : at + length].decode()
        at += length
        if states_at < states_end:
            states = unpack_states(kind, data, states_at)
            states_at += STATES_SIZE
        columns.append(Column(name, *known, size, checksum, states))
    if len({column.name for column in columns}) != len(columns) or columns[0].name:
        raise DamagedBlock("two columns of one name")
    return tuple(columns), at


def _sums(data: bytes, at: int, end: int) -> tuple[dict[str, float], int]:
    """Return the sums, which stand ``at``, and where they end."""
    names_at = at + _SUMS.size
    if names_at <= end:
        count = _SUMS.unpack_from(data, at)[0]
        table = data[names_at : (names_at := names_at + count * _SUM.size)]
    if names_at > end or not 0 < count <= MAX_COLUMNS:
        raise DamagedBlock("sums that do not add up")
    sums = {}
    for value, length in _SUM.iter_unpack(table):
        sums[data[names_at : names_at + length].decode()] = value
        names_at += length
    if len(sums) != count:
        raise DamagedBlock("two sums of one name")
    return sums, names_at


def _with_states(columns: Sequence[Column], data: bytes) -> tuple[Column, ...]:
    at = _PREFIX.size + len(columns) * _COLUMN.size
    return tuple(
        column._replace(states=unpack_states(column.kind, data[start : start + STATES_SIZE]))
        for start, column in zip(range(at, len(data), STATES_SIZE), columns, strict=False)
    )
