"""The log of slow calls: what was asked and how it was answered, of those that took long only."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import psycopg
import pytest
from fix_servers import Database
from fix_stores import COLOURS, minutes, open_store

from toolkit.config import load_settings
from toolkit.errors import InputError, QueryTimeout

DAY = ("2024-01-01Z", "2024-01-02Z")


def opened(colour: str, database: Database, slow: float) -> Any:
    return open_store(colour, replace(load_settings(database.dsn), slow=slow))


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    """What the log of slow calls says."""
    caplog.set_level(logging.INFO, "toolkit.slow")
    return lambda: [r.getMessage() for r in caplog.records if r.name == "toolkit.slow"]


@pytest.mark.parametrize("colour", COLOURS)
def test_a_slow_call_is_logged_with_what_it_was_and_how_it_went(
    colour: str, database: Database, said: Any
) -> None:
    with opened(colour, database, slow=1e-9) as store:
        store.write("metrics", minutes(500), series="cpu")
        store.read("metrics", "cpu", *DAY, step="1h", caller="desk")
        store.read("metrics", "cpu", *DAY, where=[("value", ">", 0.25)], limit=7)
        store.latest("metrics", "cpu", n=2)
        assert len(list(store.stream("metrics", "cpu", *DAY, rows=200))) == 3
        store.delete("metrics", "cpu", *DAY)
    wrote, bars, points, latest, stream, deleted = said()
    assert wrote.startswith("write to metrics took ")
    assert wrote.endswith(" s: 500 rows inserted")
    assert bars.startswith(
        "read of metrics cpu 2024-01-01T00:00Z to 2024-01-02T00:00Z step=1h for desk took "
    )
    assert "on primary, 9 rows from 500 of points" in bars
    assert "limit=7 where value took " in points
    assert "0.25" not in points
    assert ": direct on primary, 7 rows from 7 of points" in points
    assert latest.startswith("latest of metrics cpu ")
    assert "2 rows from" in latest
    assert stream.startswith("first rows of a stream of metrics cpu ")
    assert deleted.startswith("delete of metrics cpu ")
    assert deleted.endswith(": done")


@pytest.mark.parametrize("colour", COLOURS)
def test_what_is_quick_is_not_logged_and_what_fails_late_is(
    colour: str, database: Database, said: Any
) -> None:
    with opened(colour, database, slow=0.2) as store:
        store.write("metrics", minutes(5), series="cpu")
        assert not said()
        with psycopg.connect(database.dsn) as other:
            other.execute("LOCK TABLE toolkit.metrics")
            with pytest.raises(QueryTimeout):
                store.read("metrics", "cpu", *DAY, timeout=0.3)
        (late,) = said()
        assert late.endswith(" s: failed: QueryTimeout")


def test_a_threshold_of_zero_logs_nothing(database: Database, said: Any) -> None:
    with opened("blocking", database, slow=0.0) as store:
        store.write("metrics", minutes(5), series="cpu")
        with pytest.raises(InputError):
            store.write("metrics", {"ts": ["x"], "value": [1.0]}, series="cpu")
    assert not said()
