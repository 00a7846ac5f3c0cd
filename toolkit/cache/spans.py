"""Which spans a read is cut into: aligned, of one series, at one level."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from toolkit.catalog import Entry, Rollup
from toolkit.timegrid import DAY, SECOND

_MINUTE = 60 * SECOND
LENGTHS = tuple(
    n * unit
    for unit, ns in ((_MINUTE, (10, 60, 240)), (DAY, (1, 7, 28, 112, 448, 1_792)))
    for n in ns
)
"""The lengths of spans, each a multiple of the one before but one."""

_ENOUGH = 500  # points or buckets that a span holds, at least, where its series has no gap
_UNKNOWN = 60 * _MINUTE  # the span of points that come when they come


@dataclass(frozen=True, slots=True)
class Level:
    """What spans hold: the points of a series, or the states of one rollup's buckets.

    ``length`` is that of a span, ``step`` about the distance of its rows, and ``cell`` what a
    change is counted in, in µs. ``key`` begins the key of every span.
    """

    key: tuple[int, str, int]
    length: int
    step: int
    origin: int
    cell: int
    rollup: Rollup | None = None

    def floor(self, us: int) -> int:
        """Return where the span begins that holds an instant."""
        return us - (us - self.origin) % self.length

    def closed(self, us: int) -> int:
        """Return the end of the last cell that is over at an instant."""
        return us - (us - self.origin) % self.cell

    def within(self, us: int) -> int:
        """Return where the bucket begins that holds an instant."""
        return us - (us - self.origin) % self.step

    def whole(self, low: int, high: int) -> tuple[int, int]:
        """Return from where to where a range holds whole buckets."""
        return low + (self.origin - low) % self.step, self.within(high)


@lru_cache(maxsize=4_096)
def level_of_points(entry: Entry, step: int | None) -> Level:
    """Return the level of points, for series whose points are ``step`` µs apart.

    >>> from toolkit.dataset import CANDLES
    >>> candles = Entry(1, "toolkit", CANDLES, ())
    >>> level_of_points(candles, 60_000_000).length // DAY
    1
    """
    length = _UNKNOWN if step is None else _length(step)
    cell = entry.dataset.log_step
    assert cell.width is not None
    key = (entry.id, "points", length)
    # how dense others are nobody knows: as if 20 were in a cell
    return Level(key, length, step or cell.width // 20, cell.origin, cell.width)


@lru_cache(maxsize=4_096)
def level_of_rollup(entry: Entry, rollup: Rollup) -> Level:
    """Return the level of a rollup's buckets."""
    width, origin = rollup.grid.width, rollup.grid.origin
    assert width is not None
    length = _length(width)
    key = (entry.id, str(rollup.grid.step), length)
    return Level(key, length, width, origin, width, rollup)


def _length(step: int) -> int:
    """Return the least length that holds enough; of whole steps, however odd they are."""
    for length in LENGTHS:
        if length >= _ENOUGH * step and length % step == 0:
            return length
    return _ENOUGH * step
