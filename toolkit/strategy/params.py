"""The parameters of a plan's statements."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

from toolkit.catalog import Entry, Rollup
from toolkit.query import Condition
from toolkit.strategy.values import comparable
from toolkit.timegrid import DAY, EARLIEST, LATEST, Grid, Span, Step, to_datetime

_MOST_DAYS = 20_000
_LOG_REACH = 8 * DAY  # a change-log row is no longer than a cell of 7 days and a step


def range_params(span: Span) -> dict[str, Any]:
    """Return the bounds of a range."""
    return {"start": to_datetime(span.start), "end": to_datetime(span.end)}


def grid_params(grid: Grid, span: Span) -> dict[str, Any]:
    """Return what tells the database a grid: a width and an origin, or every edge."""
    if grid.width is None:
        return {"edges": [to_datetime(int(e)) for e in grid.edges(span)]}
    return {"width": timedelta(microseconds=grid.width), "origin": to_datetime(grid.origin)}


def log_start(span: Span) -> datetime:
    """Return where a row of the change log that reaches into a range can begin."""
    return to_datetime(max(span.start - _LOG_REACH, EARLIEST))


def rollup_params(rollup: Rollup, span: Span) -> dict[str, Any]:
    """Return what a read of a rollup needs: whole buckets inside, cut-off ones at the ends."""
    grid, gone = rollup.grid, rollup.gone_before
    whole = grid.ceil_one(span.start)
    inner = Span(whole, max(whole, grid.floor_one(span.end)))
    low, high = grid.floor_one(span.start), grid.ceil_one(span.end)
    cut = []
    if low < inner.start:
        cut.append((low, min(inner.start, high)))
    if inner.end < high and inner.end >= inner.start and (inner.end, high) not in cut:
        cut.append((inner.end, high))
    ranges = ",".join(
        f"[{to_datetime(a).isoformat()},{to_datetime(b).isoformat()})" for a, b in cut if a < b
    )
    return {
        "rollup": rollup.id,
        "gone": to_datetime(gone) if gone is not None else None,
        "inner_start": to_datetime(inner.start),
        "inner_end": to_datetime(inner.end),
        "cut": f"{{{ranges}}}",
        "log_start": log_start(span),
        **grid_params(grid, span),
    }


def cold_params(entry: Entry, grid: Grid) -> dict[str, Any]:
    """Return which buckets blocks may hold points of, and from when on they do not."""
    assert entry.cold_to is not None
    edge = min(grid.ceil_one(entry.cold_to), LATEST)
    text = to_datetime(edge).isoformat()
    return {
        "cold": f"{{(,{text})}}",
        "hot": f"{{[{text},)}}",
        "hot_start": to_datetime(edge),
        "hot_floor": blocks_params(entry, Span(edge, edge))["cold_start"],
    }


def blocks_params(entry: Entry, span: Span) -> dict[str, Any]:
    """Return where the blocks of a range begin at the earliest: a block lies in one partition.

    Also before which time its points may be gone, as far as is known.
    """
    day = span.start // DAY  # partitions are of whole days: worked out once for each
    starts: dict[int, datetime] = entry.once("cold starts", dict)
    start = starts.get(day)
    if start is None:
        if len(starts) > _MOST_DAYS:
            starts.clear()
        grid = Grid(Step.parse(entry.dataset.partition))
        start = starts[day] = to_datetime(max(grid.floor_one(span.start), EARLIEST))
    frozen = entry.frozen_before
    return {"cold_start": start, "frozen": to_datetime(frozen) if frozen is not None else None}


def where_params(where: Sequence[Condition], entry: Entry) -> dict[str, Any]:
    """Return the values that points are tested against, as they are stored."""
    return {
        f"where_{i}": comparable(c, entry.dataset.column(c.column))
        for i, c in enumerate(where)
        if not c.operator.startswith("is")
    }
