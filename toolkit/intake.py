"""What every frame goes through before it is stored: read, checked, its series made."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from toolkit.catalog import Entry, Series
from toolkit.directory import Directory
from toolkit.drivers import Driver
from toolkit.errors import InputError
from toolkit.ingest.frames import Batch, Numbering, arrange, to_batch
from toolkit.timegrid import Span, iso


@dataclass(frozen=True, slots=True)
class Intake:
    """How a frame is read: see :func:`toolkit.ingest.frames.to_batch`."""

    series: str | None = None
    mapping: Mapping[str, str | None] | None = None
    tz: str | None = None
    time_unit: str | None = None


class Incoming(NamedTuple):
    """A frame's points in the order of their keys; rows that an equal key replaced; all rows."""

    batch: Batch
    duplicates: int
    received: int


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


async def each_frame(
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
