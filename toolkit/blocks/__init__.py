"""Blocks: rows of one series as bytes and back, the one place that knows the format.

The format is described in ``docs/block-format.md``, for readers in any language. A cache keeps
what :func:`encode` returns; a table of blocks keeps what :func:`encode_parts` returns, the header
and each column by itself, and reads single columns back with :func:`decode_part_into`.
"""

from toolkit.blocks.block import (
    Block,
    decode,
    decode_part,
    decode_part_into,
    encode,
    encode_parts,
    read_header,
)
from toolkit.blocks.codecs import FAST, SMALL
from toolkit.blocks.format import DamagedBlock
from toolkit.blocks.header import Column, Header
from toolkit.blocks.states import States, are_states_of
from toolkit.blocks.stored import identity, read_stored_header

__all__ = [
    "FAST",
    "SMALL",
    "Block",
    "Column",
    "DamagedBlock",
    "Header",
    "States",
    "are_states_of",
    "decode",
    "decode_part",
    "decode_part_into",
    "encode",
    "encode_parts",
    "identity",
    "read_header",
    "read_stored_header",
]
