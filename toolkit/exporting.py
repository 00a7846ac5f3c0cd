"""The way out: points or bars, piece after piece, into a Parquet file: whole, or not there."""

from __future__ import annotations

import json
import os
import re
import secrets
import time
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping
from contextlib import aclosing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

from toolkit.columns import Columns
from toolkit.dataset import Dataset
from toolkit.drivers import Driver
from toolkit.errors import ExportError, MissingExtra, QueryError
from toolkit.query import Query, build_query
from toolkit.timegrid import EARLIEST, LATEST, iso, to_datetime

if TYPE_CHECKING:
    import pyarrow as pa

PIECE = 65_536
"""Rows that are asked for at a time."""
ROWS = 131_072
"""Rows of a row group: what is held in memory."""

_KEY = b"toolkit"
_MOST_HELD = 1_000  # pieces: of many short series one is larger than its rows
_LONGEST = 19  # digits of a scaled integer


@dataclass(frozen=True, slots=True)
class ExportReport:
    """What an export wrote: rows of so many series, the file's bytes, and how long it took."""

    rows: int = 0
    bytes: int = 0
    series: int = 0
    seconds: float = 0.0


def export_query(
    dataset: str, series: Any, start: object, end: object, *, step: str | None, **options: Any
) -> Query:
    """Return the query behind ``export``: over all of time where no range is given."""
    if step == "auto":
        raise QueryError("export: give a step like '1h', or none for points")
    low = to_datetime(EARLIEST) if start is None else start
    high = to_datetime(LATEST) if end is None else end
    return build_query(dataset, series, low, high, step=step, **options)


def described(
    query: Query,
    dataset: Dataset,
    labels: Mapping[str, Mapping[str, str]],
    source: Mapping[str, Any],
) -> dict[str, Any]:
    """Return what the file says of itself, JSON-ready, under the key ``toolkit``."""
    grid = query.asked.grid
    return {
        "dataset": dataset.to_mapping(),
        "start": iso(query.span.start),
        "end": iso(query.span.end),
        "step": None if grid is None else str(grid.step),
        "tz": None if grid is None else grid.tz,
        "labels": labels,
        "source": source,
    }


async def export(
    driver: Driver,
    pieces: AsyncGenerator[Columns],
    file: ParquetFile,
    on_progress: Callable[[ExportReport], None],
) -> ExportReport:
    """Write a stream to a file; when it fails or is interrupted, nothing of it stays."""
    started = time.perf_counter()
    rows, names = 0, set[str]()

    def report() -> ExportReport:
        return ExportReport(rows, file.bytes, len(names), time.perf_counter() - started)

    try:
        async with aclosing(pieces):
            async for piece in pieces:
                await driver.compute(file.add, piece)
                rows += len(piece)
                names.update(piece.names)
                on_progress(report())
        await driver.compute(file.finish)
    except BaseException:
        await driver.compute(file.discard)
        raise
    return report()


class ParquetFile:
    """A Parquet file in the making, beside ``path``, whose place it takes when it is whole.

    A caller that was cancelled may discard it while a thread still writes: calls take turns.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        types: Mapping[str, str],
        description: Mapping[str, Any],
        *,
        has_seq: bool,
        overwrite: bool,
    ) -> None:
        try:
            from pyarrow import parquet
        except ImportError:
            raise MissingExtra("pyarrow", "frames", "an export to Parquet") from None
        self.bytes = 0
        self._lock = Lock()
        self._held: list[Columns] = []
        self._rows = 0
        self._shown = Path(path)
        self._overwrite = overwrite
        with self._sentences():
            # what a link leads to is replaced, not the link
            self._path = Path(os.path.realpath(self._shown))
            self._check()
            self._part = self._path.with_name(f"{_beginning(self._path)}{secrets.token_hex(4)}")
            self._file = self._part.open("xb")
        schema = schema_of(types, has_seq=has_seq)
        self._schema = schema.with_metadata({_KEY: json.dumps(description)})
        # which any reader knows: a minute's bar takes 14 bytes so, and 25 with Arrow's defaults
        texts = [f.name for f in schema if f.type == schema.field("series").type]
        deltas = {name: "DELTA_BINARY_PACKED" for name in ("ts", "seq") if name in schema.names}
        try:
            self._writer = parquet.ParquetWriter(
                self._file,
                self._schema,
                compression="zstd",
                use_dictionary=texts,
                column_encoding=deltas,
            )
        except BaseException:
            self._remove()
            raise

    def add(self, piece: Columns) -> None:
        """Write the rows, once there are enough for a row group."""
        with self._lock, self._sentences():
            while len(piece):
                part = piece.select(slice(0, ROWS - self._rows))
                piece = piece.select(slice(len(part), None))
                self._held.append(part)
                self._rows += len(part)
                if self._rows == ROWS:
                    self._write()
                elif len(self._held) == _MOST_HELD:
                    self._held = [Columns.concat(self._held)]

    def finish(self) -> None:
        """Write what is left, see it on the disk, and give the file its name."""
        with self._lock, self._sentences():
            if self._held:
                self._write()
            self._writer.close()
            self._file.flush()
            os.fsync(self._file.fileno())
            self.bytes = self._file.tell()
            self._file.close()
            self._check()
            os.replace(self._part, self._path)
            _sync_folder(self._path.parent)

    def discard(self) -> None:
        """Leave nothing of it; a file that is whole stays."""
        with self._lock:
            if self._writer.is_open:
                with suppress(Exception):  # the footer of a file that is about to go
                    self._writer.close()
                self._writer.is_open = False  # or it tries once more when it is collected
            self._remove()

    def _write(self) -> None:
        table = Columns.concat(self._held).to_arrow().cast(self._schema)
        self._writer.write_table(table, row_group_size=ROWS)
        self._held, self._rows = [], 0
        self.bytes = self._file.tell()

    def _check(self) -> None:
        if self._path.exists() and not self._path.is_file():
            raise ExportError(f"{self._shown} is no file: name one, with its folder")
        if self._path.exists() and not self._overwrite:
            raise ExportError(f"{self._shown} exists: overwrite=True, or --overwrite, replaces it")

    def _remove(self) -> None:
        with suppress(OSError):  # what a full disk could not take is not needed
            self._file.close()
        self._part.unlink(missing_ok=True)

    @contextmanager
    def _sentences(self) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError as error:
            folder = self._shown.parent
            raise ExportError(f"{self._shown}: there is no folder {folder}; make it") from error
        except OSError as error:
            why = error.strerror or str(error)
            raise ExportError(f"{self._shown}: nothing was written: {why}") from error


def unfinished(path: Path) -> list[Path]:
    """Return what exports to ``path`` have left that were killed, or are being written now."""
    begins = _beginning(path)
    hexes = re.compile(re.escape(begins) + "[0-9a-f]{8}")
    return [p for p in path.parent.iterdir() if hexes.fullmatch(p.name)]


def _beginning(path: Path) -> str:
    return f".{path.name[:50]}."


def schema_of(types: Mapping[str, str], *, has_seq: bool) -> pa.Schema:
    """Return the Arrow schema of columns of these types; decimals as wide as any value is."""
    import pyarrow as pa

    schema = Columns.empty(types, has_seq=has_seq).to_arrow().schema
    for position, field in enumerate(schema):
        if pa.types.is_decimal(field.type):
            widest = pa.decimal128(_LONGEST, field.type.scale)
            schema = schema.set(position, field.with_type(widest))
    return schema


def _sync_folder(folder: Path) -> None:
    """See the new name on the disk, where the file system lets one."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
