"""Blocks in a table: whose each is, so that one that lies in another's place is noticed."""

from __future__ import annotations

from toolkit.blocks.format import DamagedBlock
from toolkit.blocks.header import Header, unpack_header
from toolkit.errors import shorten


def identity(dataset: str, series_id: int, lo: int, hi: int) -> str:
    """Return the stamp of the block with a series' points in [lo, hi), microseconds since 1970.

    >>> identity("candles", 17, 1_704_067_200_000_000, 1_704_153_600_000_000)
    'candles 17 1704067200000000 1704153600000000'
    """
    return f"{dataset} {series_id} {lo} {hi}"


def read_stored_header(data: bytes | memoryview, identity: str) -> Header:
    """Return the header of a stored block that was written with this :func:`identity` as stamp.

    Raises DamagedBlock as :func:`~toolkit.blocks.read_header` does, and for the whole header of
    another block. It is the only one whose columns' checksums match, so theirs are noticed, too.
    """
    header = unpack_header(bytes(data))
    if header.stamp != identity:
        raise DamagedBlock(f"a block that belongs to {shorten(header.stamp)}, not to {identity!r}")
    return header
