"""How long spans are kept: those near now briefly, closed time for long."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from toolkit.cache.spans import Level
from toolkit.dataset import Dataset
from toolkit.timegrid import SECOND

_OPEN = {60: 60, 300: 300, 900: 900, 3_600: 3_600, 14_400: 14_400, 86_400: 86_400}
_LONG = 86_400.0  # seconds that closed time is kept


@dataclass(frozen=True, slots=True)
class Policy:
    """What a store keeps, for how long, and how old it may be where a read does not say."""

    max_age: float = 1.0
    wall: Callable[[], float] = time.time

    def life(self, dataset: Dataset, level: Level, end: int) -> float:
        """Return how many seconds a span lives whose rows end at ``end``."""
        is_closed = end + level.length < self.wall() * SECOND
        if is_closed:
            return _LONG
        step = level.step // SECOND
        return float(next((life for s, life in _OPEN.items() if step <= s), 86_400))
