"""What the last reads of rollups saw of their changes: what the next one is priced by."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from toolkit.catalog import Rollup
from toolkit.timegrid import Span

_MOST = 10_000
_LIFE = 60.0  # seconds after which it is looked again: a refresh may have been


@dataclass(frozen=True, slots=True)
class _Look:
    span: Span
    share: float
    at: float


class Seen:
    """The shares of points that reads of rollups had to read again; safe to share.

    Kept by series, rollup and the magnitude of the range: the newest hour, all of it changed, says
    little about a year, and the year little about that hour.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._looks: dict[tuple[int, int], dict[int, _Look]] = {}

    def learn(self, series: tuple[int, ...], rollup: Rollup, span: Span, share: float) -> None:
        """Remember a read's share of points."""
        if len(self._looks) > _MOST:
            self._looks.clear()
        look = _Look(span, min(share, 1.0), self._clock())
        for key in (_key(series, rollup.id), _key(series)):
            self._looks.setdefault(key, {})[span.width.bit_length()] = look

    def share(self, series: tuple[int, ...], span: Span, other: float, rollup: Rollup) -> float:
        """Return the share that a read may expect, ``other`` where nobody looked.

        What was seen of another rollup is better than nothing.
        """
        looks = self._looks.get(_key(series, rollup.id)) or self._looks.get(_key(series))
        if not looks or not span.width:
            return other
        mine = span.width.bit_length()
        for apart in (0, -1, 1, -2, 2, 3, 4, 5):
            look = looks.get(mine + apart)
            if look is not None and self._clock() - look.at < _LIFE:
                low, high = max(look.span.start, span.start), min(look.span.end, span.end)
                if low < high:
                    known = (high - low) / span.width
                    return look.share * known + other * (1.0 - known)
        return other

    def forget(self) -> None:
        """Forget everything: rollups have followed."""
        self._looks = {}


def _key(series: tuple[int, ...], rollup: int = 0) -> tuple[int, int]:
    return rollup, series[0] if len(series) == 1 else -len(series)
