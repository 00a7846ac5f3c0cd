"""What a read refuses only when it must: steps finer than a series, and values in conditions."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import psycopg
import pytest
from fix_servers import Database
from fix_stores import READINGS, create

from toolkit.errors import QueryError

T0 = datetime(2024, 1, 1, tzinfo=UTC)
MINUTE = timedelta(minutes=1)
START, END = "2024-01-01T00:00Z", "2024-02-01T00:00Z"


def minutes(count: int) -> dict[str, Any]:
    ts = np.datetime64("2024-01-01", "us") + np.arange(count) * np.timedelta64(60, "s")
    return {"ts": ts, "value": np.sin(np.arange(count) / 50)}


def test_a_step_is_finer_than_a_series_only_where_all_its_points_say_so(
    store: Any, sql: psycopg.Connection
) -> None:
    store.write("metrics", minutes(40_000), series="a")
    with pytest.raises(QueryError, match="a point every 0:01:00"):
        store.read("metrics", "a", START, END, step="1s")
    assert len(store.read("metrics", "a", "2020-01-01Z", "2020-02-01Z", step="1s")) == 0
    # another client's, long after the first points, which the recorded step does not know
    sql.execute(
        "INSERT INTO metrics (series_id, ts, value) SELECT series_id, max(ts) + '1 s', 1 "
        "FROM metrics GROUP BY series_id"
    )
    with pytest.raises(QueryError, match="a point every 0:01:00"):
        store.read("metrics", "a", START, "2024-01-20Z", step="1s")
    assert len(store.read("metrics", "a", START, END, step="1s", strategy="aggregated")) == 40_001


@pytest.mark.parametrize(
    ("dataset", "column", "value", "count"),
    [
        ("metrics", "value", np.int64(0), 2),
        ("metrics", "value", np.float32(0.5), 2),
        ("readings", "hits", np.int32(0), 2),
        ("readings", "cost", np.int64(0), 2),
        ("readings", "cost", np.float64(1.5), 1),
        ("metrics", "value", True, None),
        ("readings", "hits", True, None),
        ("readings", "hits", np.True_, None),
        ("readings", "cost", False, None),
        ("readings", "hits", np.float64(1.0), None),
    ],
)
def test_conditions_take_numbers_of_numpy_and_no_booleans_for_numbers(
    store: Any, database: Database, dataset: str, column: str, value: Any, count: int | None
) -> None:
    create(database, READINGS)
    ts = [T0, T0 + MINUTE, T0 + 2 * MINUTE]
    store.write("metrics", {"ts": ts, "value": [0.0, 1.0, 2.0]}, series="a")
    numbers = [0, 1, 2]
    store.write("readings", {"ts": ts, "hits": numbers, "cost": numbers}, series="a")
    options = {"where": {column: (">", value)}}
    if count is None:
        with pytest.raises(QueryError, match="cannot be compared"):
            store.read(dataset, "a", START, END, **options)
    else:
        assert len(store.read(dataset, "a", START, END, **options)) == count


def test_conditions_take_a_list_of_numbers_of_numpy(store: Any, database: Database) -> None:
    create(database, READINGS)
    store.write("readings", {"ts": [T0, T0 + MINUTE], "hits": [1, 2]}, series="a")
    where = [("hits", "in", np.array([2, 3]))]
    assert store.read("readings", "a", START, END, where=where)["hits"].tolist() == [2]
