"""What every frame goes through before it is stored: read, checked, its series made, counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, NamedTuple, Self, TypeVar, cast

import numpy as np
import numpy.typing as npt

from toolkit.catalog import Entry, Series
from toolkit.directory import Directory
from toolkit.drivers import Driver
from toolkit.errors import InputError, PartialWrite, ToolkitError, counted
from toolkit.ingest.frames import Batch, Numbering, arrange, to_batch
from toolkit.timegrid import Span, iso


@dataclass(frozen=True, slots=True)
class Intake:
    """How a frame is read: see :func:`toolkit.ingest.frames.to_batch`."""

    series: str | None = None
    mapping: Mapping[str, str | None] | None = None
    tz: str | None = None
    time_unit: str | None = None


@dataclass(frozen=True, slots=True)
class WriteReport:
    """What a write did, in rows.

    ``received`` is the sum of the others; ``rejected`` says why rows of a good frame were not
    stored: an equal key later in the same frame, or, with ``mode="ignore"``, one that exists.
    """

    received: int = 0
    inserted: int = 0
    updated: int = 0
    unchanged: int = 0
    rejected: Mapping[str, int] = field(default_factory=dict)
    seconds: float = 0.0
    chunks: int = 0

    def __add__(self, other: Self) -> Self:
        """Add up every count.

        >>> both = WriteReport(2, rejected={"a": 1}) + WriteReport(3, rejected={"a": 2, "b": 1})
        >>> both.received, both.rejected
        (5, {'a': 3, 'b': 1})
        """
        sums: dict[str, Any] = {
            f.name: getattr(self, f.name) + getattr(other, f.name)
            for f in fields(self)
            if f.name != "rejected"
        }
        reasons = Counter(self.rejected) + Counter(other.rejected)
        return type(self)(**sums, rejected=dict(reasons))


Report = TypeVar("Report", bound=WriteReport)


class Incoming(NamedTuple):
    """A frame's points in the order of their keys; rows that an equal key replaced; all rows."""

    batch: Batch
    duplicates: int
    received: int

    def counts(self, inserted: int, updated: int, *, keeps: bool) -> dict[str, Any]:
        """Return what a report says of the frame; ``keeps``: of who keeps what is there."""
        rest = len(self.batch) - inserted - updated
        rejected = {
            "an equal key came later in the batch": self.duplicates,
            "the key exists": rest if keeps else 0,
        }
        return {
            "received": self.received,
            "inserted": inserted,
            "updated": updated,
            "unchanged": 0 if keeps else rest,
            "rejected": {reason: count for reason, count in rejected.items() if count},
            "chunks": 1,
        }


def read_frame(
    entry: Entry, frame: object, intake: Intake, plausible: Span, numbering: Numbering | None
) -> Incoming:
    """Check a frame and arrange it."""
    batch = to_batch(
        entry.dataset,
        frame,
        series=intake.series,
        mapping=intake.mapping,
        tz=intake.tz,
        time_unit=intake.time_unit,
    )
    if batch.given == () and len(batch):
        raise InputError(
            f"the frame has none of the columns of dataset {entry.dataset.name!r} "
            f"({', '.join(entry.dataset.names)}); nothing was stored"
        )
    _check_plausible(batch, plausible)
    arranged = arrange(batch, numbering)
    return Incoming(arranged.batch, arranged.duplicates, len(batch))


def _check_plausible(batch: Batch, plausible: Span) -> None:
    wrong = (batch.ts < plausible.start) | (batch.ts >= plausible.end)
    if wrong.any():
        row = int(np.argmax(wrong))
        raise InputError(
            f"column 'ts', row {row}: {iso(int(batch.ts[row]))} is outside the configured "
            f"range {plausible} ({int(wrong.sum()):,} such rows); nothing was stored"
        )


def key_exists(series: str, ts: int, seq: int | None, nothing: str = "nothing") -> InputError:
    """Return the error of a point that must be new and is not; ``nothing`` of what was stored."""
    place = iso(ts) if seq is None else f"{iso(ts)}, seq {seq}"
    return InputError(
        f"mode 'insert': series {series!r} has a point at {place} already; {nothing} was stored "
        "(mode 'upsert' replaces what is there, 'ignore' keeps it)"
    )


async def store_all(
    driver: Driver,
    frames: object,
    store: Callable[[object, Numbering | None], Awaitable[Report]],
    total: Report,
    on_chunk: Callable[[Report], None],
    rest: Callable[[ToolkitError], str],
) -> Report:
    """Store a frame, or each of an iterator, and return what that did, added to ``total``.

    Where one of several fails, PartialWrite says what is stored by then; ``rest`` says what may
    be of the one that failed.
    """
    if not isinstance(frames, Iterator | AsyncIterator):
        return await store(frames, None)
    numbering = cast(Numbering, {})
    try:
        async for frame in _each_frame(driver, frames):
            total += await store(frame, numbering)
            on_chunk(total)
    except ToolkitError as error:
        if not total.chunks:
            raise
        raise PartialWrite(
            f"chunk {total.chunks + 1}: {error} ({_before(total)}; {rest(error)})", total
        ) from error
    return total


def _before(report: WriteReport) -> str:
    """Say what is stored when a chunk fails.

    >>> _before(WriteReport(received=1, chunks=1)), _before(WriteReport(received=2000, chunks=2))
    ('the chunk before it, 1 row, is stored', 'the 2 chunks before it, 2,000 rows, are stored')
    """
    rows = counted(report.received, "rows")
    if report.chunks == 1:
        return f"the chunk before it, {rows}, is stored"
    return f"the {report.chunks:,} chunks before it, {rows}, are stored"


async def _each_frame(
    driver: Driver, frames: Iterator[object] | AsyncIterator[object]
) -> AsyncIterator[object]:
    """Yield the frames of an iterator of either kind."""
    if isinstance(frames, AsyncIterator):
        async for frame in frames:
            yield frame
        return
    end = object()
    while (frame := await driver.compute(next, frames, end)) is not end:
        yield frame


async def make_series(directory: Directory, entry: Entry, batch: Batch) -> dict[int, Series]:
    """Return the series of a batch by their codes, made where missing."""
    used = np.unique(batch.series).tolist()
    steps = _steps(batch)
    found = await directory.make_series(entry, {batch.names[c]: steps.get(c) for c in used})
    return {code: found[batch.names[code]] for code in used}


def _steps(batch: Batch) -> dict[int, int]:
    """Return the step of each series whose points are mostly that far apart and never closer."""
    steps: dict[int, int] = {}
    starts = np.flatnonzero(np.append(True, batch.series[1:] != batch.series[:-1]))
    for start, end in zip(starts, np.append(starts[1:], len(batch)), strict=True):
        apart = np.diff(batch.ts[start:end])
        apart = apart[apart > 0]
        if len(apart) < 2:
            continue
        least = int(apart.min())
        if least >= 1_000 and np.count_nonzero(apart == least) >= 0.7 * len(apart):
            steps[int(batch.series[start])] = least
    return steps


def ids_of(batch: Batch, series: Mapping[int, Series]) -> npt.NDArray[np.int32]:
    """Return the ids of series, to be looked up by the codes of a batch."""
    ids = np.zeros(len(batch.names), np.int32)
    for code, one in series.items():
        ids[code] = one.id
    return ids


def check_blocking(frames: object, what: str) -> None:
    """Refuse an iterator that only an event loop can go through."""
    if isinstance(frames, AsyncIterable):
        raise InputError(
            f"{what}: an async iterator is for a store of toolkit.connect_async; "
            "give this one an iterator"
        )
