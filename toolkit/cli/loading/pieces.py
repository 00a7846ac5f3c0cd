"""What a file is read into: pieces of bounded size that know where their rows stood."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from toolkit.errors import InputError

ROWS = 250_000
"""Rows of one piece, about: a piece is one transaction."""

_ROW = re.compile(r", row (\d+)")
_SAID = re.compile(r"; nothing (of it )?was stored$")


@dataclass(frozen=True, slots=True)
class Piece:
    """Some rows of a file: its columns by the file's names, and how far the file is read.

    ``place`` says where a row, counted from 0 in this piece, stands in the file.
    """

    columns: Mapping[str, Any]
    rows: int
    read: int
    place: Callable[[int], str]


class File(Protocol):
    """A file of rows with named columns; ``size`` is in the unit of ``Piece.read``."""

    path: Path
    names: tuple[str, ...]
    size: int

    def pieces(self, wanted: tuple[str, ...]) -> Iterator[Piece]:
        """Read the columns ``wanted`` from the start; may be called again."""


def located(error: InputError, file: File, piece: Piece) -> InputError:
    """Return an error about a row of a piece as one about a place in its file."""
    text = _SAID.sub("", str(error))
    match = _ROW.search(text)
    if match is None:
        return InputError(f"{file.path}: {text}; nothing was stored")
    place = piece.place(int(match[1]))
    text = text[: match.start()] + text[match.end() :]
    return InputError(f"{file.path}, {place}: {text}; nothing was stored")
