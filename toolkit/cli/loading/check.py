"""Reads files through, checks every row, and counts what is in them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from toolkit.cli.loading.columnar import ColumnarFile
from toolkit.cli.loading.delimited import DelimitedFile
from toolkit.cli.loading.fitting import Fit, Wish, fit
from toolkit.cli.loading.pieces import File, Piece, located
from toolkit.cli.loading.texts import is_text, typed
from toolkit.dataset import Dataset
from toolkit.errors import InputError, QueryError
from toolkit.ingest.frames import Batch, to_batch
from toolkit.timegrid import Grid, Span, Step, iso

FORMATS = ("csv", "parquet", "feather")
_SUFFIXES = {
    ".csv": "csv",
    ".tsv": "csv",
    ".txt": "csv",
    ".parquet": "parquet",
    ".pq": "parquet",
    ".feather": "feather",
    ".arrow": "feather",
    ".ipc": "feather",
}
_UNIT_LIMITS = {"s": 1e11, "ms": 1e14, "us": 1e17}  # what is larger counts nanoseconds

Read = Callable[[File, int], None]
"""Hears how far a file has been read."""


@dataclass(frozen=True, slots=True)
class Clock:
    """How times are read: the zone of those without one, and what integers count."""

    tz: str | None = None
    unit: str | None = None


@dataclass(frozen=True, slots=True)
class Source:
    """A file with its columns matched to a dataset's."""

    file: File
    dataset: Dataset
    fit: Fit
    series: str | None
    clock: Clock

    def frames(self, on_read: Read) -> Iterator[tuple[Piece, dict[str, Any]]]:
        """Yield the file's pieces, and each as a frame that the store takes."""
        for piece in self.file.pieces(tuple(self.fit.columns)):
            try:
                frame = self._frame(piece)
            except InputError as error:
                raise located(error, self.file, piece) from None
            yield piece, frame
            on_read(self.file, piece.read)

    def _frame(self, piece: Piece) -> dict[str, Any]:
        kinds = {"series": "series", "ts": "ts", "seq": "int"}
        frame = {}
        for source, target in self.fit.columns.items():
            column = piece.columns[source]
            kind = kinds.get(target) or self.dataset.column(target).type
            # Parquet and Feather say NULL themselves: there an empty text is a text
            is_read = kind in ("category", "series") and isinstance(self.file, ColumnarFile)
            if not is_read and (isinstance(column, list) or is_text(column)):
                column = typed(_decoded(column), kind, f"column {source!r}")
            frame[target] = column
        self._check_clock(frame["ts"])
        return frame

    def _check_clock(self, ts: Any) -> None:
        values = (v.as_py() if hasattr(v, "as_py") else v for v in ts)
        value = next((v for v in values if v is not None), None)
        if value is None:
            return
        if isinstance(value, int) and self.clock.unit is None:
            guess = next((u for u, limit in _UNIT_LIMITS.items() if abs(value) < limit), "ns")
            raise InputError(
                f"times that are integers ({value}) need --time-unit s, ms, us or ns: what they "
                f"count since 1970; these look like {guess}"
            )
        if self.clock.tz is None and not isinstance(value, int) and _is_naive(value):
            raise InputError(
                f"the times ({value}) carry no time zone: whose clock shows them? "
                "Give --tz UTC, or a name like --tz Europe/Berlin"
            )


@dataclass(slots=True)
class Found:
    """What is in the files, in rows; ``series`` counts rows by name."""

    rows: int = 0
    pieces: int = 0
    series: dict[str, int] = field(default_factory=dict)
    span: Span | None = None
    partitions: set[int] = field(default_factory=set)

    def add(self, batch: Batch) -> None:
        self.rows += len(batch)
        self.pieces += 1
        if not len(batch):
            return
        counts = np.bincount(batch.series, minlength=len(batch.names)).tolist()
        for name, count in zip(batch.names, counts, strict=True):
            self.series[name] = self.series.get(name, 0) + count
        low, high = int(batch.ts.min()), int(batch.ts.max()) + 1
        if self.span is not None:
            low, high = min(low, self.span.start), max(high, self.span.end)
        self.span = Span(low, high)
        grid = Grid(Step.parse(batch.dataset.partition))
        self.partitions |= set(np.unique(grid.floor(batch.ts)).tolist())


def open_source(
    path: Path,
    dataset: Dataset,
    wish: Wish,
    clock: Clock,
    *,
    format: str | None = None,
    delimiter: str | None = None,
) -> Source:
    """Open a file and match its columns."""
    kind = format or format_of(path)
    file: File
    if kind == "csv":
        stem = path.with_suffix("") if path.suffix == ".gz" else path
        separator = delimiter or ("\t" if stem.suffix == ".tsv" else ",")
        file = DelimitedFile(path, separator)
    else:
        file = ColumnarFile(path, kind)
    try:
        return Source(file, dataset, fit(dataset, file.names, wish), wish.series, clock)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None


def check(sources: Sequence[Source], plausible: Span, on_read: Read) -> tuple[Found, Any]:
    """Check every row of every file, and count; nothing is stored.

    The second value is the frame where there is but one piece, so that it need not be read
    again, else None. Memory is bounded by a piece.
    """
    found, only = Found(), None
    for source in sources:
        for piece, frame in source.frames(on_read):
            try:
                batch = to_batch(
                    source.dataset,
                    frame,
                    series=source.series,
                    tz=source.clock.tz,
                    time_unit=source.clock.unit,
                )
                _check_plausible(batch, plausible)
            except InputError as error:
                raise located(_renamed(error, source.fit.columns), source.file, piece) from None
            found.add(batch)
            only = frame if found.pieces == 1 else None
    return found, only


def _check_plausible(batch: Batch, plausible: Span) -> None:
    wrong = (batch.ts < plausible.start) | (batch.ts >= plausible.end)
    if wrong.any():
        row = int(np.argmax(wrong))
        raise InputError(
            f"column 'ts', row {row}: {iso(int(batch.ts[row]))} is outside the range that "
            f"write.earliest and write.latest allow ({int(wrong.sum()):,} such rows)"
        )


def _renamed(error: InputError, columns: Mapping[str, str]) -> InputError:
    """Name the file's own columns in the library's message."""
    text = str(error)
    for source, target in columns.items():
        if source != target:
            text = text.replace(f"column {target!r},", f"column {source!r},", 1)
    return InputError(text)


def format_of(path: Path) -> str:
    """Return a file's format by its ending."""
    suffix = path.suffixes[-2] if path.suffix == ".gz" and len(path.suffixes) > 1 else path.suffix
    if suffix.lower() in _SUFFIXES:
        return _SUFFIXES[suffix.lower()]
    raise QueryError(f"{path}: what format is it? Give --format csv, parquet or feather")


def _decoded(column: Any) -> Any:
    return column if isinstance(column, list) else column.cast("string")


def _is_naive(value: object) -> bool:
    if isinstance(value, str):
        from datetime import datetime

        try:
            return datetime.fromisoformat(value).tzinfo is None
        except ValueError:
            return False  # the library says what is wrong with it
    return getattr(value, "tzinfo", None) is None
