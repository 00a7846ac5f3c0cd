"""What reads of compressed time touch: of many partitions of blocks, only what they ask for."""

from __future__ import annotations

import re
from collections.abc import Iterator

import numpy as np
import pytest
from fix_servers import Fleet

import toolkit

HOUR = 3_600_000_000
START = 1_546_300_800_000_000  # 2019-01-01
YEARS = ("2019-01-01Z", "2022-01-01Z")
NAMES = ("A", "B", "C")


@pytest.fixture(scope="module")
def store(fleet: Fleet, server_version: str, template: str) -> Iterator[toolkit.Store]:
    """Three series of hourly bars through three years, all but the last month compressed."""
    server = fleet.server(server_version)
    database = server.database(template)
    ts = START + HOUR * np.arange(3 * 365 * 24)
    close = np.arange(len(ts)) / 8
    with toolkit.connect(database.dsn) as store:
        for name in NAMES:
            store.write("candles", {"ts": ts, "close": close}, series=name, time_unit="us")
        store.compress("candles", end="2021-12-01Z")
        yield store
    server.drop(database)


def _named(explained: str, table: str) -> set[str]:
    return set(re.findall(rf" on ({table}_p\d+)", explained))


def test_a_bounded_read_touches_only_its_partitions(store: toolkit.Store) -> None:
    said = store.explain("candles", "A", "2020-06-03Z", "2020-06-09Z").database
    assert _named(said, "candles_blocks") == {"candles_blocks_p20200601"}
    assert _named(said, "candles") == {"candles_p20200601"}
    assert "Seq Scan on candles_blocks" not in said  # of rows there are none left


def test_a_read_of_what_is_not_compressed_touches_no_block(store: toolkit.Store) -> None:
    said = store.explain("candles", "A", "2021-12-01Z", "2022-01-01Z").database
    assert not _named(said, "candles_blocks")
    assert "candles_blocks" not in said


def test_a_limit_brings_no_more_blocks_than_it_needs(store: toolkit.Store) -> None:
    found = store.read("candles", "A", *YEARS, limit=10)
    statement = store.explain("candles", "A", *YEARS, limit=10).statement
    assert "_before <" in statement
    assert len(found) == 10
    assert found["close"].tolist() == (np.arange(10) / 8).tolist()


def test_many_series_of_a_month_are_one_statement_over_one_partition(
    store: toolkit.Store,
) -> None:
    said = store.explain("candles", list(NAMES), "2020-06-01Z", "2020-07-01Z").database
    assert _named(said, "candles_blocks") == {"candles_blocks_p20200601"}


def test_a_rollup_is_read_without_a_look_at_blocks_where_nothing_changed(
    store: toolkit.Store,
) -> None:
    span = "2020-01-01Z", "2021-01-01Z"
    explained = store.explain("candles", "A", *span, step="1d", strategy="downsampled")
    assert not _named(explained.database, "candles_blocks")
