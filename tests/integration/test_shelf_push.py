"""Who listens to a shelf hears what others do there, or nobody is the worse for it."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import pytest
from fix_cache_servers import CacheServer
from fix_shelf import BRISK, DEADLINE_S, PATIENT, Client, opened
from fix_stores import COLOURS

from toolkit.drivers import drive
from toolkit.drivers.shelf import Shelf
from toolkit.drivers.shelf_aio import AsyncWire

THREAD = "toolkit-redis-push"


@pytest.fixture(params=COLOURS)
def colour(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=[2, 3], ids=["resp2", "resp3"])
def url(request: pytest.FixtureRequest, cache_server: CacheServer) -> str:
    """A server of either kind, spoken to in either protocol."""
    return f"{cache_server.url}?protocol={request.param}"


def is_listening(shelf: Shelf) -> bool:
    return bool(shelf.stats()["is_listening"])


def listeners(server: CacheServer) -> list[dict[str, Any]]:
    return [c for c in server.admin.client_list(_type="pubsub") if c["name"] == "toolkit"]


class Hearing:
    """A client that listens to cursors, and what it has heard."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self.heard: list[str] = []

    def listen(self, *cursors: str) -> None:
        for cursor in cursors:
            self.client.listen(cursor, lambda cursor=cursor: self.heard.append(cursor))

    def breathe(self) -> None:
        """Let happen what happens beside the callers."""
        began = time.monotonic()
        self.client.until(lambda: time.monotonic() > began + 0.001)

    def until_listening(self, *cursors: str) -> None:
        """Listen as a store does, that calls it now and then."""

        def is_listening() -> bool:
            self.listen(*cursors)
            return bool(self.client.stats["is_listening"])

        self.client.until(is_listening)


@contextmanager
def hearing(colour: str, url: str) -> Iterator[Hearing]:
    with opened(colour, url, PATIENT) as client:
        found = Hearing(client)
        found.until_listening("one", "two")
        yield found


def advance(client: Client, cursor: str) -> None:
    client.drop([cursor])
    assert client.advance(cursor, None, b"c1", [], 60_000) is True


def test_others_hear_of_a_cursor_that_moves(colour: str, url: str) -> None:
    with hearing(colour, url) as ears, opened(colour, url, PATIENT) as other:
        for cursor in ("one", "none of theirs", "two"):
            advance(other, cursor)
        ears.client.until(lambda: ears.heard == ["one", "two"])
        ears.listen("a later one")

        def is_heard() -> bool:
            advance(other, "a later one")  # it is subscribed to soon after
            return "a later one" in ears.heard

        ears.client.until(is_heard)


def test_a_cursor_that_does_not_move_is_not_told_of(colour: str, url: str) -> None:
    with hearing(colour, url) as ears, opened(colour, url, PATIENT) as other:
        assert other.advance("one", b"another", b"c1", ["a"], 60_000) is False
        advance(other, "two")
        ears.client.until(lambda: ears.heard)
        assert ears.heard == ["two"]


def test_ones_own_moves_are_no_news(colour: str, url: str) -> None:
    with hearing(colour, url) as ears, opened(colour, url, PATIENT) as other:
        advance(ears.client, "one")
        advance(other, "two")
        ears.client.until(lambda: ears.heard)
        assert ears.heard == ["two"]
        assert ears.client.stats["heard"] == 1


def test_a_connection_that_is_lost_comes_back_when_somebody_looks(
    colour: str, url: str, cache_server: CacheServer
) -> None:
    with hearing(colour, url) as ears, opened(colour, url, PATIENT) as other:
        for _ in range(3):
            cache_server.admin.client_kill_filter(_type="pubsub")
            ears.client.until(lambda: not ears.client.stats["is_listening"])
            ears.until_listening("one")
            ears.heard.clear()
            advance(other, "one")
            ears.client.until(lambda: ears.heard == ["one"])
        assert ears.client.stats["outages"] == 0


def test_a_server_that_is_lost_is_not_asked_until_it_is_back(
    colour: str, cache_server: CacheServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "toolkit.drivers")
    with opened(colour, cache_server.url, BRISK) as client:
        ears = Hearing(client)
        ears.until_listening("one")
        cache_server.stop()
        try:
            client.until(lambda: not client.stats["is_listening"])
            client.look("one", [])
            client.until(lambda: client.stats["probes"] >= 3)
            for _ in range(100):
                ears.listen("one")
        finally:
            cache_server.start()
        client.until(lambda: not client.shelf.is_out)
        ears.until_listening("one")
        with opened(colour, cache_server.url, PATIENT) as other:
            advance(other, "one")
        client.until(lambda: ears.heard)
    said = [r.getMessage() for r in caplog.records if "tells of" in r.getMessage()]
    assert 1 <= len(said) <= 2 * (client.stats["outages"] + 1)


def test_a_server_that_hangs_holds_nobody_up(colour: str, cache_server: CacheServer) -> None:
    with opened(colour, cache_server.url, BRISK) as client, cache_server.frozen():
        ears, slowest = Hearing(client), 0.0
        for _ in range(50):
            began = time.perf_counter()
            ears.listen("one")
            slowest = max(slowest, time.perf_counter() - began)
            ears.breathe()
        assert slowest < 0.04
        began = time.perf_counter()
        client.close()
        assert time.perf_counter() - began < 1
    assert THREAD not in {thread.name for thread in threading.enumerate()}


def test_a_server_that_says_nothing_any_more_is_left(
    colour: str, cache_server: CacheServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("blocking", "aio"):
        for name in ("QUIET_S", "PATIENCE_S"):
            monkeypatch.setattr(f"toolkit.drivers.shelf_push_{module}.{name}", 0.1)
    with hearing(colour, cache_server.url) as ears:
        calls = commands(cache_server, "ping")
        ears.client.until(lambda: commands(cache_server, "ping") > calls + 1)
        assert ears.client.stats["is_listening"]
        with cache_server.frozen():
            ears.client.until(lambda: not ears.client.stats["is_listening"])


def commands(server: CacheServer, name: str) -> int:
    return int(server.admin.info("commandstats").get(f"cmdstat_{name}", {}).get("calls", 0))


def test_who_may_not_listen_is_told_once_and_may_do_the_rest(
    colour: str, cache_server: CacheServer, caplog: pytest.LogCaptureFixture
) -> None:
    cache_server.admin.execute_command(
        "ACL", "SETUSER", "deaf", "on", ">secret", "~*", "+@all", "resetchannels"
    )
    try:
        with opened(colour, cache_server.url.replace("://", "://deaf:secret@"), PATIENT) as client:
            ears = Hearing(client)
            ears.listen("one")
            client.until(lambda: client.stats.get("errors_noperm"))
            for _ in range(20):
                ears.listen("one")
                ears.breathe()
            advance(client, "one")
            assert client.look("one", []).cursor == b"c1"
            assert client.stats["errors_noperm"] == 1
            assert client.stats["outages"] == 0
    finally:
        cache_server.admin.execute_command("ACL", "DELUSER", "deaf")
    assert caplog.text.count("refused a command (noperm)") == 1


# -- threads, processes, loops ------------------------------------------------------------------


def test_a_closed_shelf_ends_its_listener_and_can_be_used_again(
    colour: str, cache_server: CacheServer
) -> None:
    with hearing(colour, cache_server.url) as ears:
        for _ in range(2):
            began = time.perf_counter()
            ears.client.close()
            assert time.perf_counter() - began < 0.5
            assert THREAD not in {thread.name for thread in threading.enumerate()}
            ears.client.until(lambda: not listeners(cache_server))
            ears.until_listening("one")
            assert len(listeners(cache_server)) == 1


def test_a_forgotten_shelf_ends_its_listener(cache_server: CacheServer) -> None:
    client = Client("blocking", cache_server.url, PATIENT)
    client.listen("one", lambda: None)
    client.until(partial(is_listening, client.shelf))
    del client
    gc.collect()
    deadline = time.monotonic() + DEADLINE_S
    while THREAD in {thread.name for thread in threading.enumerate()}:
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_a_loop_that_ends_takes_its_listener_along(cache_server: CacheServer) -> None:
    shelf, heard = Shelf(AsyncWire(cache_server.url, PATIENT)), threading.Event()

    async def listen() -> None:
        async with asyncio.timeout(DEADLINE_S):
            while not shelf.stats()["is_listening"]:
                await shelf.listen("one", heard.set)
                await asyncio.sleep(0.005)

    for _ in range(2):  # nobody closes the shelf
        asyncio.run(listen())
        assert not shelf.stats()["is_listening"]


def test_a_forked_child_hears_by_itself(cache_server: CacheServer) -> None:
    with hearing("blocking", cache_server.url) as ears:
        ours = [c["id"] for c in listeners(cache_server)]
        if (child := os.fork()) == 0:
            try:
                ears.heard.clear()
                ears.until_listening("one")
                theirs = [c["id"] for c in listeners(cache_server)]
                with opened("blocking", cache_server.url, PATIENT) as other:
                    advance(other, "one")
                ears.client.until(lambda: ears.heard == ["one"])
                drive(ears.client.shelf.close())
                os._exit(0 if len(set(theirs) - set(ours)) == 1 else 1)
            finally:
                os._exit(2)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        ears.client.until(lambda: ears.heard == ["one"])
        assert [c["id"] for c in listeners(cache_server)] == ours
