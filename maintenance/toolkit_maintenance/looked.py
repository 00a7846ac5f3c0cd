"""What jobs that look at everything have looked at, and when: each goes on where the last ended."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from toolkit.catalog import Series
from toolkit.dataset import Dataset
from toolkit.errors import ToolkitError
from toolkit.statements import compose
from toolkit.timegrid import Span, to_datetime
from toolkit_maintenance.ground import Ground
from toolkit_maintenance.job import Act, Counts

SERIES = 100
"""Series of one part that are looked at in an act."""
_DAY = timedelta(days=1)


@dataclass(frozen=True, slots=True)
class Piece:
    """Some series of a part of a dataset; ``upto`` is the last one's id, None: no more come.

    ``failed`` gathers the pieces of the part with which something was wrong: it is looked at
    again from there.
    """

    dataset: Dataset
    span: Span
    names: tuple[str, ...]
    upto: int | None
    failed: list[str] = field(default_factory=list, compare=False)

    def __str__(self) -> str:
        return f"{self.dataset.name} {self.span}, {len(self.names):,} series from {self.names[0]!r}"


def pieces(ground: Ground, job: str, dataset: Dataset, spans: Sequence[Span]) -> Iterator[Piece]:
    """Yield what of the parts was not looked at within the job's period, longest ago first.

    Where the job is never due by itself the period is a day. By hand all is looked at: first
    what a run that was cut has left.
    """
    rows = ground.direct.fetch(_text(ground, "list_looked"), {"job": job, "dataset": dataset.name})
    known: dict[datetime, tuple[int | None, datetime]] = {r[0]: (r[1], r[2]) for r in rows}
    fresh = ground.now - (ground.options.every(job) or _DAY)
    series = sorted(ground.store.series(dataset.name), key=lambda s: s.id)

    def last(span: Span) -> tuple[bool, datetime]:
        """First what was begun, then what was never looked at, then by age."""
        upto, at = known.get(to_datetime(span.start), (None, _NEVER))
        return upto is None, at

    for span in sorted(spans, key=last):
        upto, at = known.get(to_datetime(span.start), (None, _NEVER))
        failed: list[str] = []
        if at <= fresh:
            yield from _of(dataset, span, series, failed)
            continue
        if upto is not None:
            yield from _of(dataset, span, [s for s in series if s.id > upto], failed)
        if ground.is_by_hand:
            before = [s for s in series if upto is None or s.id <= upto]
            yield from _of(dataset, span, before, failed)


_NEVER = datetime.min.replace(tzinfo=to_datetime(0).tzinfo)


def _of(
    dataset: Dataset, span: Span, series: Sequence[Series], failed: list[str]
) -> Iterator[Piece]:
    for first in range(0, len(series), SERIES):
        some = series[first : first + SERIES]
        upto = some[-1].id if first + SERIES < len(series) else None
        yield Piece(dataset, span, tuple(s.name for s in some), upto, failed)


def look(
    ground: Ground,
    job: str,
    piece: Piece,
    sql: tuple[str, ...],
    lock: str,
    do: Callable[[], Counts],
) -> Act:
    """Return the act that looks at a piece; that it was looked at is noted when ``do`` returns."""

    def noted() -> Counts:
        try:
            counts = do()
        except ToolkitError:
            piece.failed.append(str(piece))
            raise
        if piece.failed:
            return counts
        params = {
            "job": job,
            "dataset": piece.dataset.name,
            "start": to_datetime(piece.span.start),
            "series_to": piece.upto,
        }
        ground.direct.execute(_text(ground, "note_looked"), params)
        return counts

    return Act(f"{job} {piece}", sql, lock, noted)


def _text(ground: Ground, statement: str) -> bytes:
    tables = {"looked": ground.table("looked_at"), "dataset": ground.table("dataset")}
    return compose(f"jobs/{statement}", **tables)
