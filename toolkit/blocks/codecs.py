"""One column's values as bytes: constant, evenly spaced, compressed, or as they are."""

from __future__ import annotations

import struct
from functools import cache

import numpy as np
from pcodec import ChunkConfig, DeltaSpec, standalone  # type: ignore[import-untyped]  # no stubs

from toolkit.blocks.format import DTYPES, WHOLE, Array, Codec, DamagedBlock, Kind
from toolkit.columns import NULL_INT

FAST = 0
"""The level of a cache: up to twice as fast as ``SMALL``, for a tenth to a half more bytes."""
SMALL = 6
"""The level of what is written once and kept, best in blocks of some 10,000 rows."""

_HARDER = 4  # the level of a column that is too scattered for FAST
_FEW = 16  # rows below which compressing saves nothing
_LINE = struct.Struct("<qq")
_MIN, _MAX = -(2**63), 2**63 - 1


def pack_values(kind: Kind, values: Array, level: int = FAST) -> tuple[Codec, bytes]:
    """Return how a column is written, and its bytes; any bit pattern survives.

    ``values`` are 1-D, of the kind's dtype.
    """
    values = np.ascontiguousarray(values, DTYPES[kind])
    if not len(values):
        return Codec.RAW, b""
    bits = values.view(DTYPES[Kind.INT]) if kind is Kind.FLOAT else values
    if bits[0] == bits[-1] and (bits == bits[0]).all():
        return Codec.CONSTANT, values[:1].tobytes()
    if kind in WHOLE and (line := _line(values)):
        return Codec.LINEAR, line
    if len(values) < _FEW:
        return Codec.RAW, values.tobytes()
    packed = _compress(kind, values, level)
    if len(packed) >= values.nbytes:
        return Codec.RAW, values.tobytes()
    return Codec.PCO, packed


def unpack_values_into(kind: Kind, codec: Codec, data: bytes, out: Array) -> None:
    """Write a column's values over ``out``: contiguous, of the kind's dtype, as long as the column.

    The checksum of ``data`` has been checked. Raises DamagedBlock if the bytes hold anything
    else; what is in ``out`` then has no meaning.
    """
    if codec is Codec.PCO:
        _decompress(data, out)
    elif codec is Codec.LINEAR:
        _check_size(data, _LINE.size)
        start, step = _LINE.unpack(data)
        out[:] = _spread(start, step, len(out))
    elif codec is Codec.CONSTANT:
        _check_size(data, out.itemsize)
        out[:] = np.frombuffer(data, DTYPES[kind])
    else:
        _check_size(data, out.nbytes)
        out[:] = np.frombuffer(data, DTYPES[kind])


def _line(values: Array) -> bytes:
    """Return start and step of three or more evenly spaced int64, or nothing."""
    if len(values) < 3:
        return b""
    start, step = int(values[0]), int(values[1]) - int(values[0])
    end = start + step * len(values)
    if int(values[-1]) != end - step or not _MIN <= end <= _MAX:
        return b""
    # within these ends a difference that wraps around is no small step
    return _LINE.pack(start, step) if (values[1:] - values[:-1] == step).all() else b""


def _spread(start: int, step: int, rows: int) -> Array:
    end = start + step * rows
    if not step or not _MIN <= end <= _MAX:
        raise DamagedBlock(f"{rows} steps of {step} from {start} leave 64 bits")
    return np.arange(start, end, step, dtype=DTYPES[Kind.INT])


def _compress(kind: Kind, values: Array, level: int) -> bytes:
    if level == FAST and _has_nulls(kind, values):
        level = _HARDER  # a NULL lies far off the values, and needs a bin of its own
    packed: bytes = standalone.simple_compress(values, _config(kind, level))
    if level == FAST and len(packed) > values.nbytes * 3 // 5:  # so may what jumps
        packed = min(packed, standalone.simple_compress(values, _config(kind, _HARDER)), key=len)
    return packed


def _has_nulls(kind: Kind, values: Array) -> bool:
    if kind is not Kind.FLOAT and kind is not Kind.INT:
        return False
    least = np.minimum.reduce(values)  # NaN if one is
    return bool(least != least if kind is Kind.FLOAT else least == NULL_INT)


@cache
def _config(kind: Kind, level: int) -> ChunkConfig:
    """Return pcodec's settings; differences are chosen and not searched."""
    if kind in (Kind.BOOL, Kind.CATEGORY):
        delta = DeltaSpec.no_op()
    else:
        delta = DeltaSpec.try_consecutive(1)
    return ChunkConfig(compression_level=level, delta_spec=delta, enable_8_bit=True)


def _decompress(data: bytes, out: Array) -> None:
    try:
        progress = standalone.simple_decompress_into(data, out)
    except Exception as error:  # RuntimeError by its documentation; these bytes may be forged
        raise DamagedBlock(f"pcodec refuses a column: {error}") from error
    if progress.n_processed != len(out) or not progress.finished:
        raise DamagedBlock(f"a column does not hold {len(out)} values")


def _check_size(data: bytes, size: int) -> None:
    if len(data) != size:
        raise DamagedBlock(f"a column of {len(data)} bytes where {size} belong")
