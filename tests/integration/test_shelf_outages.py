"""Every way to lose the cache's second tier: cheap for callers, and it is found again."""

from __future__ import annotations

import logging
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from fix_cache_servers import CacheServer
from fix_shelf import PATIENT, Client, assert_back, assert_lost_cheaply, configured, opened, warm_up

from toolkit.drivers.shelf_aio import AsyncWire
from toolkit.drivers.shelf_blocking import BlockingWire
from toolkit.errors import ConfigError


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


# -- how a server may be lost -------------------------------------------------------------------


def test_a_server_that_ends_is_given_up_at_once_and_found_again_empty(
    brisk: Client, cache_server: CacheServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "toolkit.drivers")
    cache_server.admin.set("a", 1)
    cache_server.stop()
    try:
        assert_lost_cheaply(brisk, "connection")
        assert brisk.put("cursor", b"c", [("a", b"1", 1_000)]) is None
        assert brisk.advance("cursor", None, b"c", ["a"], 1_000) is None
        assert brisk.advance("cursor", None, b"c", ["a"] * 5_000, 1_000) is None
        assert brisk.look_or_lease("cursor", ["a"], "lease", "t", 1_000) is None
        assert (brisk.lease("l", "t", 1), brisk.release("l", "t")) == (None, None)
        assert (brisk.scan("*", 10), brisk.drop(["a"]), brisk.info()) == ([], None, None)
        brisk.until(lambda: brisk.stats["probes"] >= 3)
    finally:
        cache_server.start()
    assert_back(brisk)
    assert brisk.look("cursor", ["a"]).values == [None]
    said = [r.getMessage() for r in caplog.records if r.name == "toolkit.drivers"]
    where = f"redis at 127.0.0.1:{cache_server.port}"
    assert said.count(f"{where} is out (connection): doing without it") == brisk.stats["outages"]


def test_a_server_that_was_restarted_meanwhile_is_no_outage(
    colour: str, cache_server: CacheServer
) -> None:
    with opened(colour, cache_server.url, PATIENT) as client:
        assert client.lease("lease", "t", 60_000) is True
        cache_server.stop()
        cache_server.start()
        assert client.lease("lease", "t", 60_000) is True
        assert client.stats["outages"] == 0


def test_a_server_that_hangs_costs_one_timeout(brisk: Client, cache_server: CacheServer) -> None:
    with cache_server.frozen():
        assert_lost_cheaply(brisk, "timeout")
        brisk.until(lambda: brisk.stats["probes"] >= 2)
        assert brisk.shelf.is_out
    assert_back(brisk)


def test_a_server_that_hangs_from_the_start_costs_one_timeout(
    colour: str, cache_server: CacheServer
) -> None:
    with opened(colour, cache_server.url) as client:
        with cache_server.frozen():
            assert_lost_cheaply(client, "timeout")
        assert_back(client)


def test_a_server_that_is_too_slow_is_done_without(
    brisk: Client, cache_server: CacheServer
) -> None:
    cache_server.admin.client_pause(400, all=True)
    assert_lost_cheaply(brisk, "timeout")
    assert_back(brisk)


def test_a_server_busy_with_a_script_is_done_without(
    brisk: Client, cache_server: CacheServer
) -> None:
    with configured(cache_server, lua_time_limit=1), runaway_script(cache_server):
        brisk.until(lambda: is_busy(cache_server))
        assert brisk.timed() < 0.2
        assert brisk.shelf.is_out
        assert brisk.stats["errors_busy"] + brisk.stats.get("errors_timeout", 0) >= 1
        assert brisk.timed(100) < 0.02
    assert_back(brisk)


def is_busy(server: CacheServer) -> bool:
    try:
        server.admin.ping()
    except Exception as error:
        return "BUSY" in str(error)
    return False


@contextmanager
def runaway_script(server: CacheServer) -> Iterator[None]:
    with socket.create_connection(("127.0.0.1", server.port)) as client:
        client.sendall(b"EVAL 'while true do end' 0\r\n")
        try:
            yield
        finally:
            server.admin.script_kill()
            client.recv(100)


def test_a_replica_without_its_master_is_done_without(
    brisk: Client, cache_server: CacheServer
) -> None:
    with configured(cache_server, replica_serve_stale_data="no"):
        cache_server.admin.replicaof("127.0.0.1", 1)
        try:
            assert_lost_cheaply(brisk, "masterdown")
        finally:
            cache_server.admin.replicaof("NO", "ONE")
        assert_back(brisk)


def test_a_wrong_password_is_an_outage_until_it_is_right(
    colour: str, cache_server: CacheServer, caplog: pytest.LogCaptureFixture
) -> None:
    url = cache_server.url.replace("://", "://:tell-nobody@")
    cache_server.admin.config_set("requirepass", "something else")
    try:
        with opened(colour, url) as client:
            assert_lost_cheaply(client, "password")
            cache_server.admin.config_set("requirepass", "tell-nobody")
            assert_back(client)
            assert "tell-nobody" not in repr(client.shelf) + repr(client.stats)
    finally:
        cache_server.admin.config_set("requirepass", "")
    assert "is out (password)" in caplog.text
    assert "tell-nobody" not in caplog.text


# -- what a network may do to it ----------------------------------------------------------------


class Gate:
    """A listener that answers each request with what the test says, then closes or waits."""

    def __init__(self, reply: bytes, resets: bool = False) -> None:
        self.reply, self.resets = reply, resets
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"redis://127.0.0.1:{self._listener.getsockname()[1]}?protocol=2"
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client:
            while said := client.recv(65_536):
                if b"SETNAME" in said:
                    client.sendall(b"+OK\r\n")
                    continue
                client.sendall(self.reply)
                if self.resets:
                    linger = struct.pack("ii", 1, 0)  # close sends a reset
                    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                    return


@pytest.mark.parametrize(
    ("reply", "resets", "reason"),
    [
        (b"*2\r\n$2\r\nc1\r\n$100\r\nonly the beg", True, "connection"),
        (b"*2\r\n$2\r\nc1\r\n$100\r\nonly the beg", False, "timeout"),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", False, "protocol"),
    ],
    ids=["reset", "stalled", "not-redis"],
)
def test_a_reply_that_is_not_whole_is_no_answer(
    colour: str, reply: bytes, resets: bool, reason: str
) -> None:
    gate = Gate(reply, resets)
    try:
        with opened(colour, gate.url) as client:
            assert_lost_cheaply(client, reason)
    finally:
        gate.close()


@pytest.mark.parametrize("reply", [b"+OK\r\n", b"*1\r\n$1\r\nx\r\n", b"*2\r\n$1\r\nx\r\n:5\r\n"])
def test_a_reply_that_answers_something_else_is_no_answer(colour: str, reply: bytes) -> None:
    gate = Gate(reply)
    try:
        with opened(colour, gate.url, PATIENT) as client:
            assert client.look("cursor", ["a"]) is None
            assert client.stats["errors_strange"] == 1
    finally:
        gate.close()


@pytest.mark.parametrize("url", ["http://:secret@x", "redis://:secret@x?sort=1", "secret"])
def test_a_url_that_is_none_is_refused_without_telling_it(colour: str, url: str) -> None:
    with pytest.raises(ConfigError) as raised:
        (BlockingWire if colour == "blocking" else AsyncWire)(url)
    assert "secret" not in str(raised.value)
    assert raised.value.__cause__ is None
