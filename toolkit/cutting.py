"""Where a series is cut into blocks: about even in points, at round times, never across a block."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise

import numpy as np

from toolkit.timegrid import DAY, SECOND, Instants, Span

TARGET = 10_240
"""Points a block, at most: few enough that a short read decodes little, and so many that headers
cost next to nothing; docs/block-format.md has the measurements."""

NEAR = 32
"""Buckets between changed ones that are counted, too: a statement costs more than they."""

_ROUND = (DAY, 3_600 * SECOND, 60 * SECOND, SECOND)
_SLACK = 8  # a cut may move by such a part of a block to stand at a round time


def spans_to_pack(
    region: Span, ts: Instants, blocks: Sequence[tuple[Span, int]], *, is_closed: bool
) -> list[Span]:
    """Return the spans of which rows are to become blocks, oldest first.

    ``ts`` are the instants of the rows in ``region``, ``blocks`` what is there already, with the
    points of each, both in order. Rows in a block's span are folded into it; rows between blocks
    become blocks of their own, or join the one before where that has room. Of a region that still
    grows, not ``is_closed``, the newest rows wait until they fill a block.
    """
    spans: list[Span] = []
    begin, before, held = region.start, None, 0
    for span, count in [*blocks, (Span(region.end, region.end), 0)]:
        gap = Span(begin, max(begin, span.start))  # a block may reach past an end of the region
        rows = _within(ts, gap)
        waits = span.start == region.end and not is_closed
        if len(rows) and before is not None and held + len(rows) <= TARGET and not waits:
            if spans and spans[-1] == before:
                spans.pop()
            spans.append(Span(before.start, gap.end))
        elif len(rows):
            spans += cut(gap, rows, is_closed=not waits)
        if len(_within(ts, span)):
            spans.append(span)
        begin, before, held = span.end, span, count
    return spans


def cut(span: Span, ts: Instants, *, is_closed: bool = True) -> list[Span]:
    """Return spans that tile ``span``, of about as many of the instants each, at most TARGET.

    Of one that still grows, not ``is_closed``, they are only so many as are full. Points of one
    instant stay together, however many they are.

    >>> [s.start for s in cut(Span(0, 40_000), np.arange(40_000))]
    [0, 10000, 20000, 30000]
    """
    count = -(-len(ts) // TARGET) if is_closed else len(ts) // TARGET
    if not count:
        return []
    each = len(ts) // count if is_closed else TARGET
    edges = [span.start]
    for number in range(1, count + (not is_closed)):
        place = min(number * each, len(ts) - 1)
        edge = _rounded(int(ts[place]), int(ts[max(place - each // _SLACK, 0)]))
        if edges[-1] < edge < span.end:
            edges.append(edge)
    if is_closed:
        edges.append(span.end)
    return [Span(a, b) for a, b in pairwise(edges)]


def together(spans: Iterable[Span], near: int) -> list[Span]:
    """Return spans in order, those that lie at most ``near`` µs apart as one.

    >>> [str(len(together([Span(0, 5), Span(7, 9), Span(20, 25)], 2)))]
    ['2']
    """
    joined: list[Span] = []
    for span in spans:
        start = span.start
        if joined and start - joined[-1].end <= near:
            start = joined.pop().start
        joined.append(Span(start, span.end))
    return joined


def _within(ts: Instants, span: Span) -> Instants:
    low, high = np.searchsorted(ts, (span.start, span.end))
    return ts[low:high]


def _rounded(instant: int, least: int) -> int:
    """Return the roundest time after ``least``, up to ``instant``."""
    for unit in _ROUND:
        if (floor := instant // unit * unit) > least:
            return floor
    return instant
