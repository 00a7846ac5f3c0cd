"""Reads CSV a block at a time, through Arrow where it is installed; errors name their line."""

from __future__ import annotations

import csv
import gzip
import io
from collections.abc import Iterator
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Any

from toolkit.cli.loading.pieces import Piece
from toolkit.errors import InputError, shorten

BLOCK = 16 << 20
_MAX_RECORD = 64 << 20
_BOMS = {b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16"}


class DelimitedFile:
    """A CSV file in UTF-8 with a header, perhaps gzipped; its size is counted in bytes.

    A record may hold line ends inside quotes; empty lines are skipped. Every value comes as
    text: what it means is its dataset column's to say.
    """

    def __init__(self, path: Path, delimiter: str = ",", block: int = BLOCK) -> None:
        self.path = path
        self.size = path.stat().st_size
        self._delimiter = delimiter
        self._block = block
        self._has_arrow = find_spec("pyarrow") is not None
        with path.open("rb") as raw, self._opened(raw) as stream:
            first = next(self._blocks(stream), b"")
        self._header_line, self._header_bytes, self.names = self._header(first)

    def pieces(self, wanted: tuple[str, ...]) -> Iterator[Piece]:
        """Yield blocks of whole records; an error names its line."""
        with self.path.open("rb") as raw, self._opened(raw) as stream:
            line, skip = self._header_line + 1, self._header_bytes
            for block in self._blocks(stream):
                body = block[skip:]
                skip = 0
                if body.strip():
                    columns = self._parse(body, line, wanted)
                    rows = len(next(iter(columns.values()), ()))
                    yield Piece(columns, rows, raw.tell(), partial(self._place, body, line))
                line += body.count(b"\n")

    def _opened(self, raw: IO[bytes]) -> IO[bytes]:
        if self.path.suffix == ".gz":
            return gzip.GzipFile(fileobj=raw)  # type: ignore[return-value]  # it reads bytes
        return raw

    def _blocks(self, stream: IO[bytes]) -> Iterator[bytes]:
        """Yield blocks that end where a record ends."""
        rest, is_first, line = b"", True, 1
        try:
            while data := stream.read(self._block):
                rest += data
                if is_first:
                    rest, is_first = self._without_mark(rest), False
                cut = _end_of_records(rest)
                if cut:
                    yield rest[:cut]
                    line += rest.count(b"\n", 0, cut)
                    rest = rest[cut:]
                elif len(rest) > _MAX_RECORD:
                    raise InputError(
                        f"{self.path}, line {line}: the record that begins here is longer than "
                        f"{_MAX_RECORD >> 20} MB: is a quote never closed? Nothing was stored"
                    )
        except (EOFError, gzip.BadGzipFile) as error:
            raise InputError(f"{self.path}: not a whole gzip file: {error}") from None
        if rest:
            yield rest

    def _without_mark(self, data: bytes) -> bytes:
        if (encoding := _BOMS.get(data[:2])) is not None:
            raise InputError(f"{self.path}: is {encoding} text; save it as UTF-8")
        return data.removeprefix(b"\xef\xbb\xbf")

    def _header(self, block: bytes) -> tuple[int, int, tuple[str, ...]]:
        if b"\r" in block.rstrip(b"\r") and b"\n" not in block:
            raise InputError(f"{self.path}: its lines end in CR alone; convert them to LF")
        for start, line, record in self._records(block, 1):
            names = tuple(n.strip() for n in record)
            for name in names:
                if names.count(name) > 1:
                    raise InputError(f"{self.path}, line {start}: two columns called {name!r}")
            return line, _length_of_lines(block, line), names
        raise InputError(f"{self.path}: the file is empty; its first line should name the columns")

    def _parse(self, block: bytes, line: int, wanted: tuple[str, ...]) -> dict[str, Any]:
        if not self._has_arrow:
            return self._parse_plainly(block, line, wanted)
        import pyarrow as pa
        from pyarrow import csv as arrow_csv

        try:
            table = arrow_csv.read_csv(
                pa.BufferReader(block),
                arrow_csv.ReadOptions(column_names=self.names, block_size=len(block) + 1),
                arrow_csv.ParseOptions(delimiter=self._delimiter, newlines_in_values=True),
                arrow_csv.ConvertOptions(
                    column_types={name: pa.string() for name in self.names},
                    include_columns=wanted,
                    strings_can_be_null=False,
                ),
            )
        except pa.ArrowInvalid as error:
            self._parse_plainly(block, line, wanted)  # it says which line
            last = line + block.count(b"\n")
            raise InputError(f"{self.path}, lines {line} to {last}: {error}") from None
        if block.count(b'"') % 2:
            self._parse_plainly(block, line, wanted)  # Arrow takes a quote that is never closed
        return {name: table[name].combine_chunks() for name in wanted}

    def _parse_plainly(self, block: bytes, line: int, wanted: tuple[str, ...]) -> dict[str, Any]:
        self._check_encoding(block, line)
        places = [self.names.index(name) for name in wanted]
        columns: list[list[str]] = [[] for _ in wanted]
        for start, _, record in self._records(block, line):
            if len(record) != len(self.names):
                raise InputError(
                    f"{self.path}, line {start}: {len(record)} fields, and the header has "
                    f"{len(self.names)}: {shorten(self._delimiter.join(record))}; "
                    "nothing was stored"
                )
            for column, place in zip(columns, places, strict=True):
                column.append(record[place])
        return dict(zip(wanted, columns, strict=True))

    def _check_encoding(self, block: bytes, line: int) -> None:
        try:
            block.decode()
        except UnicodeDecodeError as error:
            at = line + block.count(b"\n", 0, error.start)
            raise InputError(
                f"{self.path}, line {at}: not UTF-8 (byte 0x{block[error.start]:02x}); "
                "save the file as UTF-8; nothing was stored"
            ) from None

    def _records(self, block: bytes, line: int) -> Iterator[tuple[int, int, list[str]]]:
        """Yield (first line, last line, fields) of each record that is not an empty line."""
        text = io.StringIO(_decoded(block), newline="")
        reader = csv.reader(text, delimiter=self._delimiter, strict=True)
        last = 0
        while True:
            try:
                record = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                said = str(error)
                if "unexpected end" in said:
                    said = "a quote opens here and is never closed"
                raise InputError(
                    f"{self.path}, line {line + last}: {said}; nothing was stored"
                ) from None
            first, last = last, reader.line_num
            if record:
                yield line + first, line + last - 1, record

    def _place(self, block: bytes, line: int, row: int) -> str:
        for number, (first, _, _) in enumerate(self._records(block, line)):
            if number == row:
                return f"line {first}"
        return f"row {row + 1} after line {line}"


def _decoded(block: bytes) -> str:
    return block.decode(errors="replace")


def _end_of_records(data: bytes) -> int:
    """Return the length of the whole records in ``data``: line ends in quotes end none.

    >>> _end_of_records(b'a,b\\n1,"x\\ny"\\n2,"z\\n')
    12
    """
    end = data.rfind(b"\n") + 1
    quotes = data.count(b'"', 0, end)
    while end and quotes % 2:
        earlier = data.rfind(b"\n", 0, end - 1) + 1
        quotes -= data.count(b'"', earlier, end)
        end = earlier
    return end


def _length_of_lines(data: bytes, lines: int) -> int:
    end = 0
    for _ in range(lines):
        end = data.find(b"\n", end) + 1 or len(data)
    return end
