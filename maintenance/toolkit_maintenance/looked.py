"""What jobs that look at everything have looked at, and when: each goes on where the last ended."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from toolkit.catalog import Series
from toolkit.dataset import Dataset
from toolkit.errors import DatabaseError, ToolkitError, Unavailable
from toolkit.statements import compose
from toolkit.timegrid import Span, to_datetime
from toolkit_maintenance.ground import Ground
from toolkit_maintenance.job import Act, Counts

SERIES = 100
"""Series of one part that are looked at in an act."""
AT_ONCE = 10
"""Series that are looked at before that is noted."""
_DAY = timedelta(days=1)


@dataclass(frozen=True, slots=True)
class Piece:
    """Some series of a part of a dataset; ``upto`` is the last one's id, None: no more come.

    ``place`` is where the part is noted. ``failed`` gathers the pieces of the part with which
    something was wrong: it is looked at again from there.
    """

    dataset: Dataset
    span: Span
    place: datetime
    series: tuple[Series, ...]
    upto: int | None
    failed: list[str] = field(default_factory=list, compare=False)

    def asked(
        self, names: tuple[str, ...] | None = None
    ) -> tuple[str, tuple[str, ...], datetime, datetime]:
        """Return what a call of the store is asked for: of these series or of all."""
        names = tuple(s.name for s in self.series) if names is None else names
        return self.dataset.name, names, to_datetime(self.span.start), to_datetime(self.span.end)

    def __str__(self) -> str:
        first = self.series[0].name
        return f"{self.dataset.name} {self.span}, {len(self.series):,} series from {first!r}"


def pieces(
    ground: Ground, job: str, dataset: Dataset, spans: Sequence[Span], gaps: Sequence[Span] = ()
) -> Iterator[Piece]:
    """Yield what of the parts was not looked at within the job's period, longest ago first.

    ``gaps`` are parts without a partition. Where the job is never due by itself the period is a
    day. By hand all is looked at: first what a run that was cut has left.
    """
    rows = ground.direct.fetch(_text(ground, "list_looked"), {"job": job, "dataset": dataset.name})
    known: dict[datetime, tuple[int | None, datetime]] = {r[0]: (r[1], r[2]) for r in rows}
    fresh = ground.now - (ground.options.every(job) or _DAY)
    series = sorted(ground.store.series(dataset.name), key=lambda s: s.id)

    places = {span: to_datetime(span.start) for span in spans}
    places |= {gap: to_datetime(place_of_gap(gap.start)) for gap in gaps}

    def last(span: Span) -> tuple[bool, datetime]:
        """First what was begun, then what was never looked at, then by age."""
        upto, at = known.get(places[span], (None, _NEVER))
        return upto is None, at

    for span in sorted(places, key=last):
        place = places[span]
        upto, at = known.get(place, (None, _NEVER))
        failed: list[str] = []
        if at <= fresh:
            yield from _of(dataset, span, place, series, failed)
            continue
        if upto is not None:
            yield from _of(dataset, span, place, [s for s in series if s.id > upto], failed)
        if ground.is_by_hand:
            before = [s for s in series if upto is None or s.id <= upto]
            yield from _of(dataset, span, place, before, failed)


def place_of_gap(start: int) -> int:
    """Return where a gap is noted: not where a partition is, if one is made there later."""
    return start + 1


_NEVER = datetime.min.replace(tzinfo=to_datetime(0).tzinfo)


def _of(
    dataset: Dataset, span: Span, place: datetime, series: Sequence[Series], failed: list[str]
) -> Iterator[Piece]:
    for first in range(0, len(series), SERIES):
        some = series[first : first + SERIES]
        upto = some[-1].id if first + SERIES < len(series) else None
        yield Piece(dataset, span, place, tuple(some), upto, failed)


Look = Callable[[tuple[str, ...]], tuple[Counts, bool]]
"""Looks at series by name; returns what to count, and whether its time was over before the end."""


def look(
    ground: Ground, job: str, piece: Piece, sql: tuple[str, ...], lock: str, do: Look
) -> Iterator[Act]:
    """Yield the act that looks at a piece; what was looked at to its end is noted, and no more.

    Where it is cut it is yielded again, as what its time did not suffice for.
    """
    is_over = False

    def done() -> Counts:
        nonlocal is_over
        is_over = True  # also where it fails
        counts, wrong = Counter[str](), list[ToolkitError]()
        for first in range(0, len(piece.series), AT_ONCE):
            if first and ground.left is not None and ground.left <= 0:
                is_over = False
                break
            some = piece.series[first : first + AT_ONCE]
            try:
                found, is_cut = do(tuple(s.name for s in some))
            except Unavailable:
                raise
            except ToolkitError as error:  # the others are looked at all the same
                wrong.append(error)
                continue
            counts.update(found)
            if is_cut:
                is_over = False
                break
            if not piece.failed and not wrong:
                is_last = first + AT_ONCE >= len(piece.series)
                _note(ground, job, piece, piece.upto if is_last else some[-1].id)
        if wrong:
            is_over = True
            piece.failed.append(str(piece))
            raise wrong[0] if len(wrong) == 1 else DatabaseError("; ".join(map(str, wrong)))
        return counts

    while not is_over:
        yield Act(f"{job} {piece}", sql, lock, done)
        if ground.is_dry:
            break


def _note(ground: Ground, job: str, piece: Piece, upto: int | None) -> None:
    params = {
        "job": job,
        "dataset": piece.dataset.name,
        "start": piece.place,
        "series_to": upto,
    }
    ground.direct.execute(_text(ground, "note_looked"), params)


def _text(ground: Ground, statement: str) -> bytes:
    tables = {"looked": ground.table("looked_at"), "dataset": ground.table("dataset")}
    return compose(f"jobs/{statement}", **tables)
