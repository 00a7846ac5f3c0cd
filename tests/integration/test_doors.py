"""Doors to one server whose connections fail in the making, are cut, or are waited for."""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from typing import Any

import psycopg
import pytest
from fix_servers import Database
from fix_stores import COLOURS
from fix_topologies import DAY, metric, threaded

from toolkit.config import load_settings
from toolkit.drivers import drive, session
from toolkit.drivers.aio import AsyncDriver
from toolkit.drivers.blocking import BlockingDriver
from toolkit.errors import Unavailable
from toolkit.options import PoolOptions

both = pytest.mark.parametrize("colour", COLOURS)


@both
def test_a_connection_that_cannot_be_set_up_is_closed(
    database: Database, colour: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[psycopg.BaseConnection[Any]] = []
    kind = BlockingDriver if colour == "blocking" else AsyncDriver
    driver = kind(database.dsn, PoolOptions())

    def refuse(connection: psycopg.BaseConnection[Any]) -> None:
        made.append(connection)
        raise psycopg.OperationalError("no")

    monkeypatch.setattr(driver, "_prepare", refuse)
    with pytest.raises(Unavailable, match="cannot be reached: no"):
        drive(driver.open()) if isinstance(driver, BlockingDriver) else asyncio.run(driver.open())
    assert [connection.closed for connection in made] == [True]


def test_the_arguments_of_a_connection_are_the_callers_own() -> None:
    options = PoolOptions()
    session.arguments("host=a", options)["application_name"] = "mine"
    assert session.arguments("host=a", options)["application_name"] == "toolkit"


@both
def test_who_waits_for_a_connection_when_all_are_cut_is_told_that(
    database: Database, colour: str
) -> None:
    settings = load_settings(database.dsn, environ={}).without_cache()
    settings = replace(settings, pool=PoolOptions(min_size=2, max_size=2))
    with threaded(colour, settings) as store, ThreadPoolExecutor(1) as threads:
        for minute in range(3):
            store.write("metrics", metric(minute), series="a")
        streams = [store.stream("metrics", "a", *DAY, rows=1) for _ in range(2)]
        for stream in streams:
            next(stream)
        roads = getattr(store, "store", store)._roads
        reading = threads.submit(lambda: store.read("metrics", "a", *DAY))
        until = time.monotonic() + 10
        while not roads.driver.stats().get("requests_waiting") and time.monotonic() < until:
            time.sleep(0.005)
        roads.driver.cut()
        with pytest.raises(Unavailable, match="primary: connections to it were cut"):
            reading.result(10)
        for stream in streams:
            with suppress(Unavailable):
                stream.close()
        assert len(store.read("metrics", "a", *DAY)) == 3
