"""A week of minutes, and what a store that remembers does about it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

DAY = ("2024-03-01T00:00Z", "2024-03-02T00:00Z")
DAYS = ("2024-03-01T00:00Z", "2024-03-08T00:00Z")


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


def memory(store: Any) -> Any:
    """The first tier of a store of either colour."""
    return getattr(store, "store", store)._roads.cache.memory
