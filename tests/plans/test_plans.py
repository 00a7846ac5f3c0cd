"""What reads touch: with 60 partitions and two million rows, only what they ask for."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import psycopg
import pytest
from fix_catalog import value
from fix_plans import DENSE, MONTHS, SPARSE, Examiner, Plan, Spy
from fix_servers import Database

import toolkit
from toolkit.config import load_settings

A_HANDFUL = 12  # locks: two tables with their indexes, and the catalog
JUNE = ("2021-06-01Z", "2021-07-01Z")


@pytest.fixture
def store(wide: Database, spy: Spy) -> Iterator[toolkit.Store]:
    """A store that knows its names already, so that only reads are heard."""
    settings = load_settings(wide.dsn)
    with toolkit.Store(
        replace(settings, pool=replace(settings.pool, min_size=1, max_size=1))
    ) as store:
        store.read("bars", [f"dense-{n}" for n in range(1, DENSE + 1)], *JUNE, limit=1)
        store.latest("bars")
        store.read("bars", "stopped", *JUNE)
        spy.forget()
        yield store


def the_plan(spy: Spy, examiner: Examiner, table: str = "bars", index: int = -1) -> Plan:
    return examiner.explain(*spy.of(table)[index])


def test_the_ground_is_as_wide_as_promised(wide: Database) -> None:
    assert value(wide.dsn, "SELECT count(*) FROM toolkit.bars") >= 2_000_000
    parts = "SELECT count(*) FROM pg_inherits WHERE inhparent = 'toolkit.bars'::regclass"
    assert value(wide.dsn, parts) == MONTHS


# -- bounded reads ------------------------------------------------------------------------------


def test_a_bounded_read_touches_only_its_partitions(
    store: toolkit.Store, spy: Spy, examiner: Examiner
) -> None:
    assert len(store.read("bars", "dense-3", *JUNE)) == 1_644
    assert len(spy.said) == 1
    plan = the_plan(spy, examiner)
    assert plan.planned("bars") == {"bars_p20210601"}
    assert plan.kinds("bars") == {"Index Only Scan"}
    assert plan.heap_fetches() == {}
    assert plan.rows("bars") == 1_644
    assert plan.pages() < 60
    assert plan.planning_ms < 1
    assert plan.locks <= A_HANDFUL


def test_a_range_over_a_month_end_touches_two(
    store: toolkit.Store, spy: Spy, examiner: Examiner
) -> None:
    store.read("bars", "dense-3", "2021-06-20Z", "2021-07-10Z")
    plan = the_plan(spy, examiner)
    assert plan.executed("bars") == plan.planned("bars") == {"bars_p20210601", "bars_p20210701"}
    store.read("bars", "dense-3", "2021-06-20Z", "2021-07-01Z")
    assert the_plan(spy, examiner).planned("bars") == {"bars_p20210601"}


def test_a_range_outside_all_partitions_touches_none(
    store: toolkit.Store, spy: Spy, examiner: Examiner
) -> None:
    assert len(store.read("bars", "dense-3", "2030-01-01Z", "2030-02-01Z")) == 0
    assert the_plan(spy, examiner).planned("bars") == set()


def test_a_limit_stops_early(store: toolkit.Store, spy: Spy, examiner: Examiner) -> None:
    for descending in (False, True):
        store.read("bars", "dense-3", *JUNE, limit=10, descending=descending)
        plan = the_plan(spy, examiner)
        assert plan.rows("bars") == 10
        assert plan.kinds("bars") == {"Index Only Scan"}
        assert plan.pages() < 12


def test_a_limit_over_years_reads_the_first_partition_only(
    store: toolkit.Store, spy: Spy, examiner: Examiner
) -> None:
    store.read("bars", "dense-3", "2019-01-01Z", "2024-01-01Z", limit=10, descending=True)
    plan = the_plan(spy, examiner)
    assert plan.executed("bars") == {"bars_p20231201"}
    assert plan.rows("bars") == 10


def test_a_condition_is_tested_in_the_index(
    store: toolkit.Store, spy: Spy, examiner: Examiner
) -> None:
    found = store.read("bars", "dense-3", *JUNE, where={"close": (">", 50_000)}, columns=["low"])
    plan = the_plan(spy, examiner)
    assert plan.planned("bars") == {"bars_p20210601"}
    assert plan.kinds("bars") == {"Index Only Scan"}
    assert plan.heap_fetches() == {}
    assert plan.rows("bars") == len(found)


def test_buckets_are_computed_from_the_index_alone(
    store: toolkit.Store, spy: Spy, examiner: Examiner
) -> None:
    for tz in ("UTC", "Europe/Berlin"):
        store.read("bars", "dense-3", *JUNE, step="1d", tz=tz, strategy="aggregated")
        plan = the_plan(spy, examiner)
        assert plan.planned("bars") == {"bars_p20210601"}
        assert plan.kinds("bars") == {"Index Only Scan"}
        assert plan.planning_ms < 1
        assert plan.locks <= A_HANDFUL


# -- prepared statements ------------------------------------------------------------------------


def test_the_sixth_prepared_call_goes_on_with_a_plan_of_its_own(
    store: toolkit.Store, spy: Spy
) -> None:
    for day in range(1, 16):
        store.read("bars", "dense-3", f"2021-06-{day:02}Z", f"2021-06-{day + 1:02}Z")
    assert len(set(spy.connections)) == 1
    found = spy.connections[0].execute(
        "SELECT generic_plans, custom_plans FROM pg_prepared_statements "
        "WHERE statement ~ 'bars' ORDER BY custom_plans DESC LIMIT 1"
    )
    generic, custom = found.fetchone() or (None, 0)
    assert generic == 0
    assert custom >= 10  # psycopg prepares at the sixth call


def test_a_generic_plan_would_lock_every_partition(
    store: toolkit.Store, spy: Spy, examiner: Examiner
) -> None:
    """The control: this is what force_custom_plan on every connection spares us."""
    store.read("bars", "dense-3", *JUNE)
    statement, params = spy.of("bars")[-1]
    with examiner.connection.transaction(force_rollback=True):
        examiner.connection.execute("SET LOCAL plan_cache_mode = force_generic_plan")
        examiner.connection.execute(statement, params, prepare=True)
        assert examiner.count_locks() > MONTHS


# -- many series --------------------------------------------------------------------------------


@pytest.mark.parametrize("by", ["names", "labels"])
@pytest.mark.parametrize(
    "how", [{}, {"step": "1M"}, {"step": "1M", "strategy": "aggregated"}], ids=str
)
def test_a_thousand_series_cost_one_statement(
    store: toolkit.Store, spy: Spy, by: str, how: dict[str, Any]
) -> None:
    names = [f"sparse-{n}" for n in range(1, SPARSE + 1)] if by == "names" else None
    labels = {"kind": "sparse"} if by == "labels" else None
    found = store.read("bars", names, *JUNE, labels=labels, **how)
    assert len(found.names) == SPARSE
    assert len(spy.said) == 1


def test_a_thousand_series_of_one_month_read_its_partition_only(
    store: toolkit.Store, spy: Spy, examiner: Examiner
) -> None:
    found = store.read("bars", [f"sparse-{n}" for n in range(1, SPARSE + 1)], *JUNE)
    plan = the_plan(spy, examiner)
    assert plan.planned("bars") == {"bars_p20210601"}
    assert plan.rows("bars") == len(found)
    assert plan.pages() <= 4 * SPARSE
    assert plan.locks <= A_HANDFUL


# -- latest -------------------------------------------------------------------------------------


def test_latest_of_500_series_touches_500_index_entries(
    store: toolkit.Store, spy: Spy, examiner: Examiner
) -> None:
    names = [f"sparse-{n}" for n in range(1, 501)]
    found = store.latest("bars", names)
    assert len(found) == 500
    reads = spy.of("bars")
    assert len(reads) == 1
    assert len(spy.said) <= 2  # the other one lists the partitions
    plan = examiner.explain(*reads[0])
    assert plan.planned("bars") == {"bars_p20231201"}
    assert plan.rows("bars") == 500
    assert plan.heap_fetches() == {}
    assert plan.pages() <= 4 * 500
    assert plan.locks <= A_HANDFUL


def test_latest_of_a_series_that_stopped_widens_in_a_few_steps(
    store: toolkit.Store, spy: Spy, examiner: Examiner
) -> None:
    found = store.latest("bars", ["stopped", "dense-1"])
    assert found["close"][0] == 42
    reads = spy.of("bars")
    assert len(reads) <= 4
    assert all(params["ids"] == reads[1][1]["ids"] for _, params in reads[1:])
    assert len(reads[1][1]["ids"]) == 1  # the one that was found is not asked for again


def test_unbounded_latest_walks_backwards_from_the_newest_partition(
    store: toolkit.Store, spy: Spy, examiner: Examiner
) -> None:
    """In the last, unbounded window: what lies before the newest point is never opened."""
    store.latest("bars", "stopped")
    statement, params = spy.of("bars")[-1]
    whole = {"start": datetime(1900, 1, 1, tzinfo=UTC), "end": datetime(2100, 1, 1, tzinfo=UTC)}
    assert {k: params[k] for k in whole} == whole
    plan = examiner.explain(statement, params)
    assert min(plan.executed("bars")) == "bars_p20190301"
    assert plan.planned("bars") >= {"bars_p20190101", "bars_p20190201"}
    with psycopg.connect(
        examiner.connection.info.dsn, password=examiner.connection.info.password
    ) as c:
        alive = c.execute("SELECT id FROM toolkit.series WHERE name = 'dense-1'").fetchone()
    plan = examiner.explain(statement, params | {"ids": [alive[0]]})
    assert plan.executed("bars") == {"bars_p20231201"}
    assert plan.rows("bars") == 1


# -- rollups ------------------------------------------------------------------------------------


def test_a_read_of_a_rollup_goes_by_the_indexes_of_log_and_rollup(
    store: toolkit.Store, spy: Spy, examiner: Examiner
) -> None:
    found = store.read("bars", "dense-3", "2020-01-01Z", "2022-01-01Z", step="1d")
    assert found.plan.strategy == "downsampled"
    assert found.plan.sources == {"rollup": 731, "points": 0}
    plan = the_plan(spy, examiner)
    assert plan.executed("bars_1d") == {"bars_1d_p20200101", "bars_1d_p20210101"}
    assert plan.planned("bars_1d") == plan.executed("bars_1d")
    assert plan.kinds("bars_1d") == {"Index Only Scan"}
    assert plan.kinds("bars_log") == {"Index Only Scan"}
    (statement, params) = spy.of("bars")[-1]
    assert examiner.locked(statement, params, "bars_p") == set()
    assert plan.heap_fetches() == {}
    assert plan.pages() < 100


def test_a_changed_day_is_read_from_its_partition_only(
    store: toolkit.Store, spy: Spy, examiner: Examiner
) -> None:
    store.write("bars", {"ts": ["2021-06-15T10:00Z"], "close": [1.0]}, series="dense-5")
    spy.forget()
    found = store.read("bars", "dense-5", "2021-01-01Z", "2022-01-01Z", step="1d")
    assert found.plan.sources["rollup"] == 364
    assert 50 < found.plan.sources["points"] < 60
    # planned late, inside a function, where EXPLAIN does not look: the locks tell
    (statement, params) = spy.of("bars")[-1]
    assert examiner.locked(statement, params, "bars_p") == {"bars_p20210601"}


# -- writes -------------------------------------------------------------------------------------


def test_an_upsert_plans_only_the_partitions_it_writes_to(
    store: toolkit.Store, spy: Spy, examiner: Examiner
) -> None:
    frame = {"ts": ["2021-06-15T11:00Z", "2021-06-15T11:01Z"], "close": [1.0, 2.0]}
    store.write("bars", frame, series="dense-6")
    spy.forget()
    store.write("bars", frame, series="dense-6")
    merges = [s for s in spy.of("bars") if "MERGE" in s[0]]
    assert len(merges) == 1
    plan = examiner.explain(*merges[0], analyze=False)
    assert plan.planned("bars_p") == {"bars_p20210601"}
    assert plan.locks <= A_HANDFUL
