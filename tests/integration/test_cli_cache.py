"""What is seen of the second tier: from a shell, and from a program."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import psycopg
import pytest
from click.testing import CliRunner, Result
from fix_cache import DAY, DAYS, SECOND_DAY, memory, minutes
from fix_cache_servers import CacheServer
from fix_servers import Database
from fix_sharing import cursor, sharing, spans
from fix_shelf import configured
from fix_stores import COLOURS, cached, open_store

from toolkit.cli import main
from toolkit.errors import ConfigError, QueryError

Run = Callable[..., Result]


@pytest.fixture
def run(database: Database, cache_server: CacheServer) -> Run:
    def run(*arguments: str, code: int = 0, url: str = cache_server.url, **options: Any) -> Result:
        env = {"TOOLKIT_CACHE_REDIS": url}
        line = ["--dsn", database.dsn, "cache", *arguments]
        result = CliRunner().invoke(main, line, env=env, **options)
        assert result.exit_code == code, result.output
        assert "Traceback" not in result.output
        return result

    return run


def test_stats_count_what_is_there(pair: Any, run: Run, cache_server: CacheServer) -> None:
    pair[0].read("metrics", ["a", "b"], *DAYS)
    pair[0].read("metrics", "a", *DAYS, step="1h", strategy="downsampled")
    there = spans(cache_server)
    base, _, *rest = there[0].rsplit(b":", 5)
    cache_server.admin.set(b":".join([base, b"0a", *rest]), b"of another epoch")
    cache_server.admin.set(b":".join([b"tk1:ff", b"0a", *rest]), b"of another database")
    before = cursor(cache_server)
    said = json.loads(run("stats", "--json").stdout)
    found = {d["dataset"]: d for d in said["datasets"]}
    assert set(found) == {"candles", "metrics", "trades"}
    metrics = found["metrics"]
    assert metrics["spans"] == 15
    assert metrics["bytes"] == sum(cache_server.admin.memory_usage(k) for k in there)
    assert 0 < metrics["share"] < 1
    assert [(v["level"], v["length_s"], v["spans"]) for v in metrics["levels"]] == [
        ("points", 86_400, 14),
        ("1h", 28 * 86_400, 1),
    ]
    assert (metrics["outdated"]["spans"], said["others"]["spans"]) == (1, 1)
    assert (metrics["behind"], said["is_whole"]) == (0, True)
    assert 0 <= metrics["moved_s"] < 60
    assert (found["candles"]["moved_s"], found["candles"]["spans"]) == (None, 0)
    facts = cache_server.admin.info()
    assert said["server"]["version"] in (facts["redis_version"], facts.get("valkey_version"))
    shown = run("stats").stdout
    assert "points" in shown
    assert f"127.0.0.1:{cache_server.port}" in shown
    assert "1 span of other databases" in shown
    assert cursor(cache_server) == before


def test_stats_tell_how_far_behind_the_database_they_are(
    pair: Any, run: Run, sql: psycopg.Connection, cache_server: CacheServer
) -> None:
    pair[0].read("metrics", "a", *DAY)

    def behind() -> Any:
        said = json.loads(run("stats", "--json").stdout)
        return next(d["behind"] for d in said["datasets"] if d["dataset"] == "metrics")

    assert behind() == 0
    for day in (1, 3, 5):
        sql.execute("UPDATE metrics SET value = 7 WHERE ts = %s", [f"2024-03-0{day}Z"])
    before = cursor(cache_server)
    assert behind() == 6  # of two series
    assert cursor(cache_server) == before
    pair[0].read("metrics", "a", *DAY, freshness="strong")
    assert behind() == 0
    sql.execute("TRUNCATE metrics_log")
    sql.execute("UPDATE dataset SET pruned_to = pg_current_xact_id() WHERE name = 'metrics'")
    assert behind() is None
    assert "log was cut" in run("stats").stdout


def test_stats_end_in_time(pair: Any, run: Run) -> None:
    pair[0].read("metrics", "a", *DAY)
    assert json.loads(run("stats", "--json", "--seconds", "0").stdout)["is_whole"] is False
    assert "before every key was seen" in run("stats", "--seconds", "0").stderr


def test_stats_warn_of_what_does_not_suit_a_cache(run: Run, cache_server: CacheServer) -> None:
    warned = run("stats").stderr
    assert "noeviction" in warned
    assert "maxmemory is 0" in warned
    assert "to disk" not in warned
    fine = {"maxmemory": "64mb", "maxmemory-policy": "allkeys-lru"}
    with configured(cache_server, **fine):
        assert run("stats").stderr == ""
        for bad in ({"save": "60 10000"}, {"appendonly": "yes"}):
            with configured(cache_server, **bad):
                assert "to disk" in run("stats").stderr


def test_peek_says_what_is_there_and_what_is_missing(
    pair: Any, run: Run, cache_server: CacheServer
) -> None:
    pair[0].read("metrics", "a", *SECOND_DAY)
    pair[0].read("metrics", "a", "2024-03-05T00:00Z", "2024-03-07T00:00Z")
    said = json.loads(run("peek", "metrics", "a", *DAYS, "--json").stdout)
    points = next(level for level in said["levels"] if level["level"] == "points")
    assert {level["level"] for level in said["levels"]} == {"points", "5m", "1h", "1d"}
    days = ["2024-03-02", "2024-03-05", "2024-03-06"]
    assert [f["start"] for f in points["found"]] == [f"{d}T00:00:00Z" for d in days]
    assert {f["rows"] for f in points["found"]} == {1440}
    assert {f["bytes"] for f in points["found"]} <= {
        cache_server.admin.memory_usage(k) for k in spans(cache_server)
    }
    assert all(86_000 < f["life_s"] <= 86_400 for f in points["found"])
    assert points["missing"] == [
        {"start": "2024-03-01T00:00:00Z", "end": "2024-03-02T00:00:00Z"},
        {"start": "2024-03-03T00:00:00Z", "end": "2024-03-05T00:00:00Z"},
        {"start": "2024-03-07T00:00:00Z", "end": "2024-03-08T00:00:00Z"},
    ]
    shown = run("peek", "metrics", "a", *DAYS).stdout
    assert "points: 3 spans are there, something is missing" in shown
    (key, *_) = spans(cache_server)
    cache_server.admin.set(key, b"damaged")
    assert "points: 2 spans are there" in run("peek", "metrics", "a", *DAYS).stdout
    cache_server.admin.flushall()
    assert "points: 0 spans are there" in run("peek", "metrics", "a", *DAYS).stdout


@pytest.mark.parametrize(
    ("arguments", "left"),
    [
        (("a",), 7),
        (("a", "b", "--from", "2024-03-03", "--to", "2024-03-04"), 12),
        (("?", "--from", "2024-03-06"), 10),
        (("b", "--to", "2024-03-02T01:00", "--tz", "Europe/Berlin"), 13),
        (("--all",), 0),
        (("--all", "--to", "2024-03-03"), 10),
    ],
    ids=str,
)
def test_drop_drops_what_is_meant(
    pair: Any, run: Run, cache_server: CacheServer, arguments: tuple[str, ...], left: int
) -> None:
    plain = pair[1].read("metrics", ["a", "b"], *DAYS)["value"].sum()
    said = run("drop", "metrics", *arguments, "--yes", "--json").stdout
    assert json.loads(said) == {"spans": 14 - left}
    assert len(spans(cache_server)) == left
    for store in pair:
        memory(store).clear()
        assert store.read("metrics", ["a", "b"], *DAYS)["value"].sum() == plain


def test_drop_asks_first(pair: Any, run: Run, cache_server: CacheServer) -> None:
    pair[0].read("metrics", "a", *DAY)
    asked = run("drop", "metrics", "a", input="n\n", code=1).stderr
    assert "Drop what is shared of a of metrics?" in asked
    assert "nothing was done" in asked
    assert "give --yes" in run("drop", "metrics", "--all", code=1).stderr
    assert len(spans(cache_server)) == 1
    assert run("drop", "metrics", "a", input="y\n").stdout == "1 span dropped\n"
    assert spans(cache_server) == []


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("drop", "metrics", "--yes"), 2, "give SERIES, or --all"),
        (("drop", "metrics", "a", "--all"), 2, "give SERIES, or --all"),
        (("drop", "metrics", "BTC-*", "--yes"), 2, "unknown series 'BTC-*'"),
        (("drop", "nosuch", "--all", "--yes"), 2, "unknown dataset 'nosuch'"),
        (("drop", "metrics", "--all", "--from", "soon"), 2, "--from: 'soon' is not a time"),
        (("drop", "metrics", "a", "--yes", "--from", "now", "--to", "now-1d"), 2, "end"),
        (("peek", "metrics", "nosuch", *DAY), 2, "unknown series 'nosuch'"),
        (("peek", "metrics", "a", "1950-01-01", "now"), 2, "give a shorter one"),
    ],
)
def test_what_is_wrong_is_a_sentence(
    pair: Any, run: Run, arguments: tuple[str, ...], code: int, said: str
) -> None:
    assert said in run(*arguments, code=code).stderr


EVERY = (("stats",), ("peek", "metrics", "a", *DAY), ("drop", "metrics", "--all", "--yes"))


@pytest.mark.parametrize("arguments", EVERY, ids=str)
def test_without_redis_it_says_which_setting(
    database: Database, run: Run, arguments: tuple[str, ...]
) -> None:
    said = run(*arguments, url="", code=2).stderr
    assert "cache.redis: is not set" in said
    assert "TOOLKIT_CACHE_REDIS" in said


@pytest.mark.parametrize("arguments", EVERY, ids=str)
def test_a_redis_that_is_out_is_a_sentence(
    blocking: Any, run: Run, arguments: tuple[str, ...]
) -> None:
    blocking.write("metrics", minutes(1), series="a")
    said = run(*arguments, url="redis://:hush@127.0.0.1:1/0", code=3).stderr
    assert "redis at 127.0.0.1:1 is out (connection)" in said
    assert "hush" not in said
    assert said.count("\n") == 1


@pytest.mark.parametrize("colour", COLOURS)
def test_a_program_asks_the_same(
    colour: str, database: Database, cache_server: CacheServer
) -> None:
    with sharing(colour, database, cache_server) as store:
        store.write("metrics", minutes(1), series="a")
        store.read("metrics", "a", *DAY)
        report = store.describe_shared()
        assert {d.dataset: d.spans for d in report.datasets}["metrics"] == 1
        levels = store.peek_shared("metrics", "a", *DAY)
        assert (levels[0].level, len(levels[0].found)) == ("points", 1)
        with pytest.raises(QueryError, match="more than 2,000 spans of points"):
            store.peek_shared("metrics", "a", "1950-01-01Z", DAY[1])
    for options in ({}, {"memory": 0, "redis": cache_server.url}):
        with (
            open_store(colour, cached(database.dsn, **options)) as store,
            pytest.raises(ConfigError, match=r"^cache\.(redis: is not set|memory: is 0)"),
        ):
            store.describe_shared()
