"""Who shares a shelf: threads, forked processes, event loops, and callers that give up."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Iterator

import pytest
from fix_cache_servers import CacheServer
from fix_shelf import (
    BRISK,
    DEADLINE_S,
    PATIENT,
    Client,
    assert_back,
    assert_lost_cheaply,
    opened,
    warm_up,
)

from toolkit.drivers import drive
from toolkit.drivers.shelf import Shelf
from toolkit.drivers.shelf_aio import AsyncWire
from toolkit.drivers.shelf_blocking import BlockingWire
from toolkit.drivers.shelf_wire import ShelfOptions


@pytest.fixture(params=["blocking", "asyncio"])
def colour(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def brisk(colour: str, cache_server: CacheServer) -> Iterator[Client]:
    """A client of a server that is about to be lost; it has been used."""
    with opened(colour, cache_server.url) as client:
        client.until(lambda: not client.shelf.is_out)
        warm_up(client)
        yield client


# -- threads, processes, loops ------------------------------------------------------------------


async def look_until_it_answers(shelf: Shelf) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while await shelf.look("cursor", ["a"]) is None:  # noqa: ASYNC110  # its watcher is its own
            await asyncio.sleep(0.005)


def test_threads_share_it_through_an_outage(cache_server: CacheServer) -> None:
    wire = BlockingWire(cache_server.url, BRISK)
    shelf, slowest, has_ended = Shelf(wire), [0.0] * 4, threading.Event()

    def use(number: int) -> None:
        while not has_ended.is_set():
            started = time.perf_counter()
            looked = drive(shelf.look(f"cursor {number}", ["a"]))
            slowest[number] = max(slowest[number], time.perf_counter() - started)
            assert looked is None or looked.cursor == b"%d" % number
            has_ended.wait(0.001)  # let others have the interpreter

    cache_server.admin.mset({f"cursor {number}": number for number in range(4)})
    threads = [threading.Thread(target=use, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    client = Client.__new__(Client)
    client.runner, client.shelf = None, shelf
    try:
        client.until(lambda: shelf.stats()["calls"] > 100)
        with cache_server.frozen():
            client.until(lambda: shelf.is_out)
            client.until(lambda: shelf.stats()["probes"] >= 1)
        calls = shelf.stats()["calls"]
        client.until(lambda: shelf.stats()["calls"] > calls + 100)
    finally:
        has_ended.set()
        for thread in threads:
            thread.join()
        client.end()
    assert max(slowest) < 1.0
    assert shelf.stats()["errors_timeout"] <= len(threads) * shelf.stats()["outages"]


def test_no_more_connections_than_allowed(cache_server: CacheServer) -> None:
    async def main() -> int:
        shelf = Shelf(AsyncWire(cache_server.url, ShelfOptions(timeout=5.0, max_connections=3)))
        looked = await asyncio.gather(*(shelf.look("cursor", ["a"]) for _ in range(50)))
        assert None not in looked
        names = [c["name"] for c in cache_server.admin.client_list()]
        await shelf.close()
        return names.count("toolkit")

    assert asyncio.run(main()) == 3


def test_a_forked_child_makes_its_own_connections(cache_server: CacheServer) -> None:
    with opened("blocking", cache_server.url, PATIENT) as client:
        cache_server.admin.set("cursor", b"c1")
        assert client.look("cursor", []).cursor == b"c1"
        ours = {c["id"] for c in cache_server.admin.client_list() if c["name"] == "toolkit"}
        if (child := os.fork()) == 0:
            try:
                is_fine = client.look("cursor", []).cursor == b"c1"
                theirs = {c["id"] for c in cache_server.admin.client_list()}
                os._exit(0 if is_fine and ours < theirs else 1)
            finally:
                os._exit(2)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert client.look("cursor", []).cursor == b"c1"
        assert client.stats["outages"] == 0


def test_a_child_forked_in_an_outage_looks_for_itself(
    cache_server: CacheServer,
) -> None:
    with opened("blocking", cache_server.url) as client:
        with cache_server.frozen():
            assert_lost_cheaply(client, "timeout")
            if (child := os.fork()) == 0:
                try:
                    os._exit(0 if client.timed() < 0.2 and client.stats["outages"] == 1 else 1)
                finally:
                    os._exit(2)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert_back(client)


def test_a_second_loop_makes_its_own_connections(cache_server: CacheServer) -> None:
    shelf = Shelf(AsyncWire(cache_server.url, PATIENT))
    for _ in range(2):  # the first loop ends without closing the shelf
        assert asyncio.run(shelf.look("cursor", ["a"])) is not None
    asyncio.run(shelf.close())
    assert shelf.stats()["outages"] == 0


def test_a_second_loop_ends_the_outage_of_the_first(cache_server: CacheServer) -> None:
    shelf = Shelf(AsyncWire(cache_server.url, BRISK))

    async def until_back() -> None:
        await look_until_it_answers(shelf)
        await shelf.close()

    with cache_server.frozen():
        assert asyncio.run(shelf.look("cursor", ["a"])) is None
    assert shelf.is_out
    asyncio.run(until_back())
    assert not shelf.is_out


def test_a_loop_that_is_held_up_is_no_outage(cache_server: CacheServer) -> None:
    async def main() -> None:
        shelf = Shelf(AsyncWire(cache_server.url, BRISK))
        await look_until_it_answers(shelf)
        outages = shelf.stats()["outages"]
        looking = asyncio.create_task(shelf.look("cursor", ["a"]))
        await asyncio.sleep(0)  # it has been sent
        time.sleep(0.15)  # noqa: ASYNC251  # somebody computes on the loop
        assert await looking is not None
        assert shelf.stats()["outages"] == outages
        await shelf.close()

    asyncio.run(main())


def test_a_cancelled_look_leaves_nothing_behind(cache_server: CacheServer) -> None:
    async def main() -> None:
        shelf = Shelf(AsyncWire(cache_server.url, PATIENT))
        cache_server.admin.mset({"cursor": b"c1", "a": b"1", "b": b"2"})
        for _ in range(20):
            looking = asyncio.create_task(shelf.look("cursor", ["a"]))
            await asyncio.sleep(0)
            looking.cancel()
            looked = await shelf.look("cursor", ["b"])
            assert looked is not None
            assert looked.values == [b"2"]
        await shelf.close()

    asyncio.run(main())


def test_a_closed_shelf_ends_its_watcher_and_can_be_used_again(
    brisk: Client, cache_server: CacheServer
) -> None:
    with cache_server.frozen():
        assert_lost_cheaply(brisk, "timeout")
        brisk.close()
        assert "toolkit-redis" not in {thread.name for thread in threading.enumerate()}
    assert not brisk.shelf.is_out
    warm_up(brisk)


def test_a_child_that_closes_its_copy_leaves_the_parent_alone(
    brisk: Client, cache_server: CacheServer
) -> None:
    with cache_server.frozen():
        assert_lost_cheaply(brisk, "timeout")
        if (child := os.fork()) == 0:
            try:
                drive(brisk.shelf.close())  # the loop is the parent's, so without one
                os._exit(0)
            finally:
                os._exit(2)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert brisk.shelf.is_out
    assert_back(brisk)
