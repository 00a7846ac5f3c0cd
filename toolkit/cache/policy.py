"""What a store keeps of which level, and for how long."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from toolkit.cache.spans import Level
from toolkit.catalog import Entry
from toolkit.options import CacheOptions
from toolkit.rules import EVERYTHING, CacheRule
from toolkit.timegrid import SECOND

_EARLY = 0.1  # the share of a life, at its end, in which a span that is read is fetched anew


@dataclass(frozen=True, slots=True)
class Policy:
    """The options of a cache, asked about a level."""

    options: CacheOptions
    wall: Callable[[], float] = time.time

    def rule(self, entry: Entry, level: Level) -> CacheRule:
        """Return the rule of a level."""

        def find() -> CacheRule:
            asked = entry.dataset.name, level.key[1], level.step
            return next((r for r in self.options.rules if r.fits(*asked)), EVERYTHING)

        rule: CacheRule = entry.once(("cache rule", level.key, level.step), find)
        return rule

    def life(self, entry: Entry, level: Level, end: int) -> float:
        """Return how many seconds a span lives whose rows end at ``end``."""
        is_closed = end + level.length < self.wall() * SECOND
        return self.rule(entry, level).life(level.step, is_closed=is_closed)

    def due(self, expires: float, life: float) -> float:
        """Return from when on a span is worth fetching anew, in the background."""
        return expires - life * _EARLY if self.options.ahead else expires
