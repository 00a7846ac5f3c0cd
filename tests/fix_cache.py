"""A week of minutes, what a store that remembers does about it, and what it may not miss."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np

DAY = ("2024-03-01T00:00Z", "2024-03-02T00:00Z")
SECOND_DAY = ("2024-03-02T00:00Z", "2024-03-03T00:00Z")
DAYS = ("2024-03-01T00:00Z", "2024-03-08T00:00Z")
HOUR = datetime(2024, 3, 1, 12, tzinfo=UTC)
UNTIL = HOUR + timedelta(hours=1)
NEAR = 0.001


def minutes(days: int = 7, value: float = 1.0) -> dict[str, Any]:
    """A frame of minutes from the first of March on."""
    ts = np.datetime64("2024-03-01", "us") + np.arange(days * 1440) * np.timedelta64(1, "m")
    return {"ts": ts, "value": np.arange(len(ts)) * value}


@contextmanager
def no_database(store: Any) -> Iterator[list[bytes]]:
    """Count the statements that a store sends."""
    driver = getattr(store, "store", store)._roads.driver
    said: list[bytes] = []
    real = driver.fetch

    async def fetch(statement: bytes, *args: Any, **options: Any) -> Any:
        said.append(statement)
        return await real(statement, *args, **options)

    driver.fetch = fetch
    try:
        yield said
    finally:
        del driver.fetch


def same(one: Any, other: Any) -> None:
    """Hold two answers against each other, bit for bit."""
    assert list(one) == list(other)
    assert np.array_equal(one.ts, other.ts)
    assert np.array_equal(one.series, other.series)
    for name in one:
        assert one[name].tobytes() == other[name].tobytes()


def lease_of(span: bytes) -> bytes:
    """What the lease of a span in Redis is called."""
    program, base, _, *rest = span.split(b":")
    return b":".join([program, base, b"lease", *rest])


def memory(store: Any) -> Any:
    """The first tier of a store of either colour."""
    return getattr(store, "store", store)._roads.cache.memory


@dataclass
class Counter:
    """A point that one writer counts up, and when each of its values was there for sure."""

    minute: int
    who: int | None = None  # the store that writes it, if it is one
    committed: list[float] = field(default_factory=list)

    @property
    def at(self) -> datetime:
        return HOUR + timedelta(minutes=self.minute)

    def floor(self, moment: float) -> int:
        """The least value that a reader may see who was promised all up to a moment."""
        return bisect_right(self.committed, moment)

    def near(self, called: float, answered: float) -> list[float]:
        """The commits that ended while a read ran, or right before or after it."""
        low = bisect_right(self.committed, called - NEAR)
        return self.committed[low : bisect_right(self.committed, answered + NEAR)]
