"""The catalog and the points of datasets as mapped classes: read, and written by SQL."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from fix_servers import Database
from fix_sessions import KINDS, Sessions, sessions_of
from fix_stores import READINGS, cached, create, store_bars
from sqlalchemy import delete, func, insert, select, update
from sqlalchemy.exc import IntegrityError, StatementError

import toolkit
from toolkit import migrate, operations
from toolkit.catalog import VERSION_TABLE
from toolkit.errors import UnknownName
from toolkit.sqlalchemy import RoutingSession, models, table_of

START = datetime(2024, 1, 1, tzinfo=UTC)
DAY = ("2024-01-01Z", "2024-01-02Z")


@pytest.fixture
def store(database: Database) -> Iterator[toolkit.Store]:
    """A store that remembers its answers, and has bars of an hour."""
    create(database, READINGS)
    with toolkit.connect(cached(database.dsn, max_age=0.0, keep_log=0)) as opened:
        store_bars(opened, 60)
        opened.refresh("candles")
        yield opened


@pytest.fixture(params=KINDS)
def sessions(request: pytest.FixtureRequest, database: Database) -> Iterator[Sessions]:
    with sessions_of(request.param, database.dsn) as made:
        yield made


def test_the_catalog_and_the_points_are_read_with_their_relations(
    store: toolkit.Store, sessions: Sessions
) -> None:
    store.label("candles", "BTC-USD", {"venue": "kraken"})
    known = models(*store.datasets())
    candle, series = known["candles"], known.Series

    def body(session: RoutingSession) -> None:
        bars = select(candle).join(candle.series).where(series.name == "BTC-USD")
        first = session.scalars(bars.order_by(candle.ts).limit(1)).one()
        assert (first.ts, first.close, first.series.labels) == (START, 0.0, {"venue": "kraken"})
        assert first.series.dataset.spec["name"] == first.series.dataset.name == "candles"
        steps = select(known.Rollup.step).join(known.Rollup.dataset)
        found = session.scalars(steps.where(known.Dataset.name == "candles").order_by("step"))
        assert sorted(found) == ["1d", "1h", "5m"]
        assert session.get(candle, (first.series_id, START)) is first

    sessions.run(body)
    assert set(known) == {d.name for d in store.datasets()}
    with pytest.raises(UnknownName, match="did you mean 'candles'"):
        known["candle"]


def test_what_is_written_by_orm_is_seen_by_the_cache_and_the_rollups(
    store: toolkit.Store, sessions: Sessions
) -> None:
    known = models(*store.datasets())
    candle = known["candles"]

    def hours() -> list[float]:
        cached = store.read("candles", "BTC-USD", *DAY, step="1h", columns=["high"])
        bare = store.read("candles", "BTC-USD", *DAY, step="1h", columns=["high"], cache=False)
        down = store.read(
            "candles", "BTC-USD", *DAY, step="1h", columns=["high"], strategy="downsampled"
        )
        assert list(cached["high"]) == list(bare["high"]) == list(down["high"])
        return [float(high) for high in bare["high"]]

    assert hours() == [59.0]

    def series(session: RoutingSession) -> int:
        named = select(known.Series.id).where(known.Series.name == "BTC-USD")
        return session.scalars(named).one()

    def adding(session: RoutingSession) -> None:
        at = START + timedelta(hours=1)
        session.add(candle(series_id=series(session), ts=at, high=500.0))
        session.commit()

    def changing(session: RoutingSession) -> None:
        first = session.get(candle, (series(session), START))
        first.high = 300.0
        session.commit()

    def many(session: RoutingSession) -> None:
        rows = [
            {"series_id": series(session), "ts": START + timedelta(hours=2, minutes=n), "high": n}
            for n in range(30)
        ]
        session.execute(insert(candle), rows)
        table = table_of(toolkit.dataset.CANDLES)
        session.execute(update(table).where(table.c.high == 29.0).values(high=31.0))
        session.commit()

    def removing(session: RoutingSession) -> None:
        session.execute(delete(candle).where(candle.high == 300.0))
        session.rollback()
        session.execute(delete(candle).where(candle.high == 500.0))
        session.commit()

    for job, expected in (
        (adding, [59.0, 500.0]),
        (changing, [300.0, 500.0]),
        (many, [300.0, 500.0, 31.0]),
        (removing, [300.0, 31.0]),
    ):
        sessions.run(job)
        assert hours() == [max(59.0, expected[0]), *expected[1:]]
        store.refresh("candles")
        assert hours() == expected


def test_decimals_are_exact_and_a_key_is_there_once(
    store: toolkit.Store, sessions: Sessions
) -> None:
    point = {"ts": ["2024-01-01Z"], "seq": [1], "cost": [Decimal("1.2345")], "mood": ["calm"]}
    store.write("readings", point, series="A")
    reading = models(READINGS)["readings"]

    def body(session: RoutingSession) -> None:
        found = session.scalars(select(reading)).one()
        assert (found.cost, found.mood, found.level) == (Decimal("1.2345"), "calm", None)
        found.cost = Decimal("-0.0001")
        session.commit()
        assert session.scalar(select(func.count()).where(reading.cost < 0)) == 1
        key = {"series_id": found.series_id, "ts": START}
        session.add(reading(**key, seq=2, cost=Decimal("0.00001")))
        with pytest.raises(StatementError, match="more than 4 digits"):
            session.flush()
        session.rollback()
        with pytest.raises(IntegrityError):
            session.execute(insert(reading).values(**key, seq=1))
        session.rollback()

    sessions.run(body)
    assert store.read("readings", "A", *DAY).to_pandas()["cost"].tolist() == [Decimal("-0.0001")]


def test_autogenerate_proposes_nothing_for_the_models(
    store: toolkit.Store, database: Database
) -> None:
    known = models(*store.datasets())
    options: dict[str, Any] = {
        "version_table": VERSION_TABLE,
        "version_table_schema": "toolkit",
        "include_schemas": True,
        "include_name": lambda name, kind, _: kind != "schema" or name == "toolkit",
        "include_object": operations.include_object,
    }
    with migrate.connected(database.dsn) as connection:
        context = MigrationContext.configure(connection, opts=options)
        assert compare_metadata(context, known.metadata) == []
