"""The benchmarks at a tiny size: every case runs, and its JSON is sane."""

from __future__ import annotations

import asyncio
import io
import json
import re
import socket
import sys
import time
from dataclasses import replace
from urllib.parse import urlsplit

import numpy as np
import pandas as pd
import pytest
from fix_servers import ON_ONE_VERSION, PROJECT, Database
from rich.console import Console

from toolkit.bench import blocks, cli, decorated, files, grid, memory, outages, report
from toolkit.bench.ground import LONG, PRICED, Sizes, at, bars, prepared
from toolkit.bench.load import capacity, open_load
from toolkit.bench.measure import Contender, Result, Target, by_turns, by_turns_awaited, compare
from toolkit.bench.peers import ADBC, PANDAS
from toolkit.store import Store

_ROW = re.compile(r"^\| `(\w+)` \| .+ \| (.+) \|$", re.MULTILINE)

TINY = Sizes(
    series=2,
    minutes=17 * 1_440,
    small_read=100,
    large_read=1_000,
    buckets=20,
    log_rows=400,
    log_series=10,
    written_rows=400,
    written_series=4,
    to_sql_rows=100,
    streamed_rows=2_500,
    priced_minutes=1_500,
    cached_days=16,
    turns=4,
    cached_turns=20,
    large_turns=2,
    write_turns=2,
    real_series=1,
    packed_rows=8_000,
    load_s=0.3,
)


def silent(text: str) -> None:
    return None


@ON_ONE_VERSION
def test_every_case_runs_and_says_what_it_measured(database: Database, redis_url: str) -> None:
    findings = cli.Findings()
    with prepared(database.dsn, redis_url, "toolkit", TINY, silent) as ground:
        cli.measure(ground, list(cli.CASES), findings, silent)
    results = findings.results
    found = json.loads(json.dumps(report.to_mapping(results, findings.server)))
    assert found["machine"]["postgresql"].startswith(database.version)
    assert [case["case"] for case in found["cases"]] == list(cli.CASES)
    for case in found["cases"]:
        assert case["points"] > 0
        assert case["turns"] > 0
        assert isinstance(case["is_met"], bool)
        assert case["comparisons"] or case["ceiling"] or case["least_points_per_s"]
        if case["unit"] == "ms":
            assert 0 < case["p50"] <= case["p99"]
            assert case["points_per_s"] == pytest.approx(case["points"] / case["p50"] * 1000)
        for comparison in case["comparisons"]:
            assert 0 < comparison["p50"] <= comparison["p99"]
            ratio = comparison["p50"] / case["p50"]
            ratio = 1 / ratio if comparison["ratio_is"] == "ours / peer" else ratio
            assert comparison["ratio"] == pytest.approx(ratio)
    out = io.StringIO()
    Console(file=out, width=160).print(report.table(results))
    assert all(name in out.getvalue() for name in cli.CASES)
    documented = dict(_ROW.findall((PROJECT / "docs" / "benchmarks.md").read_text()))
    assert documented == {result.case: report.targets(result) for result in results}
    assert_grid_is_told(next(r for r in results if r.case == "grid"))


def assert_grid_is_told(result: Result) -> None:
    """The share of every state of the cache, and every cell that is beyond, up to twenty."""
    for state in ("none", "cold", "points", "rollup"):
        assert f"{state} " in result.what
        assert any(line.startswith(f"{state}: ") and "within 1.5" in line for line in result.lines)
    beyond = next(line for line in result.lines if line.startswith("beyond 1.5"))
    count = int(beyond.split()[3])
    assert sum(" × with " in line for line in result.lines) == min(count, 20)
    share = float(result.what.split("within 1.5 ×: ")[1].split("%")[0])
    assert round(100 * (1 - count / result.points)) == share


@pytest.mark.parametrize("is_hung", [False, True])
def test_a_lost_redis_is_what_it_is_called(is_hung: bool) -> None:
    with outages.lost_redis(is_hung=is_hung) as url:
        port = urlsplit(url).port
        if not is_hung:
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection(("127.0.0.1", port))
            return
        with socket.create_connection(("127.0.0.1", port)) as asked:
            asked.settimeout(0.2)
            asked.sendall(b"PING\r\n")
            with pytest.raises(TimeoutError):
                asked.recv(1)


def test_decorated_peers_answer_from_what_they_keep(
    database: Database, redis_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """In memory and in Redis: one call of the function, the same frame ever after."""
    calls: list[str] = []

    def load(start: str, end: str) -> pd.DataFrame:
        calls.append(start)
        return pd.DataFrame({"close": [1.0, 2.0]})

    async def both(url: str | None) -> None:
        for by in (decorated.by_aiocache, decorated.by_cashews):
            async with by(load, url) as read:
                for _ in range(3):
                    assert (await read("a", "b"))["close"].tolist() == [1.0, 2.0]

    for url in (None, redis_url):
        calls.clear()
        with decorated.by_dogpile(load, url) as read:
            for _ in range(3):
                assert read("a", "b")["close"].tolist() == [1.0, 2.0]
            assert calls == ["a"]
            read.invalidate("a", "b")
            read("a", "b")
            assert calls == ["a", "a"]
        calls.clear()
        asyncio.run(both(url))
        assert calls == ["a", "a"]  # one of each
    assert not caplog.records


def test_the_cache_is_brought_back_into_its_state_before_each_read(
    database: Database, redis_url: str
) -> None:
    """What a read on one road leaves behind helps no other; what is held answers alone."""
    with prepared(database.dsn, redis_url, "toolkit", TINY, silent) as ground:
        ground.store.write(PRICED.name, bars(1_440, 0), series="clean")
        ground.store.refresh(PRICED.name)
        read = grid.Read("clean", "close", at(0), at(1_440), "1h", "UTC")
        answers = {"direct": {"memory": 1_440}, "downsampled": {"memory": 288}}
        held = {"points": "direct", "rollup": "downsampled", "cold": "", "none": ""}
        for name, state in grid.STATES.items():
            settings = replace(ground.remembering(state.memory), prices=grid.FINE)
            with Store(settings) as store:
                side = grid.Side(store, state)
                for strategy in ("direct", "aggregated", "downsampled", "aggregated") * 2:
                    sources = read.plan(side.ready(read), strategy).sources
                    if strategy == held[name]:
                        assert sources == answers[strategy]
                    else:
                        assert "memory" not in sources


def test_peers_and_ours_read_the_same_points(database: Database, redis_url: str) -> None:
    with prepared(database.dsn, redis_url, "toolkit", TINY, silent) as ground:
        start, end = "2023-01-01T01:00Z", "2023-01-01T03:00Z"
        asked = ground.questions("candles", "B1").points(start, end)
        ours = ground.store.read("candles", "B1", start, end)
        rows, frame, table = (
            read(asked) for read in (ground.peers.rows, ground.peers.frame, ground.peers.arrow)
        )
        assert len(ours) == len(rows) == len(frame) == table.num_rows == 120
        for position, name in enumerate(ours, 1):
            values = ours.raw(name).tolist()
            assert values == [row[position] for row in rows]
            assert values == frame[name].tolist() == table[name].to_pylist()


def test_a_peer_that_is_not_installed_is_named(
    database: Database, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever else is there is measured; a target that was not tried is not met, and is told."""
    for package in ("arcticdb", "duckdb"):
        monkeypatch.setitem(sys.modules, package, None)
    with prepared(database.dsn, redis_url, "toolkit", TINY, silent) as ground:
        result = blocks.read(ground)
    assert {c.peer.name for c in result.comparisons} == {ADBC, PANDAS, blocks.FROM_ROWS}
    assert {m.peer for m in result.missing} == {files.ARCTIC, *files.DUCKDB}
    assert not result.is_met
    assert "≤ 5 × ArcticDB" in report.targets(result)
    out = io.StringIO()
    Console(file=out, width=240).print(report.table([result]))
    assert all(f"{name}: missing" in out.getvalue() for name in (files.ARCTIC, *files.DUCKDB))
    for package, extra in (("arcticdb", "arctic"), ("duckdb", "bench")):
        asked = f"needs the package '{package}'; pip install 'timeseries-toolkit[{extra}]'"
        assert asked in "".join(result.notes)
    assert report.to_mapping([result], "18")["cases"][0]["missing"][files.ARCTIC]


def test_files_hold_the_frame_they_were_given() -> None:
    frame = pd.DataFrame(bars(3_000, 1))
    with files.files(frame) as kept:
        arrow, arrays = kept.read_arrow(), kept.read_numpy()
        for name in frame:
            assert np.array_equal(arrays[name], frame[name].to_numpy())
            assert np.array_equal(arrow[name].to_numpy(), frame[name].to_numpy())
        if files.ARCTIC not in kept.missing:  # it has an extra to itself
            kept.write_arctic()
            found = kept.read_arctic().reset_index()
            assert all(np.array_equal(found[n].to_numpy(), frame[n].to_numpy()) for n in frame)
        folder = kept.parquet.parent
    assert not folder.exists()


def test_a_load_counts_what_falls_due_while_it_waits() -> None:
    """One slow act delays those behind it, and their times say so."""
    begun: list[int] = []

    def act(number: int) -> None:
        begun.append(number)
        if number == 0:
            time.sleep(0.2)

    times = open_load(act, rate=100.0, workers=1, is_over=lambda lasted: lasted >= 0.3)
    assert begun == list(range(30))
    assert times[0] >= 200
    assert times[10] >= 100 - 10
    assert min(times) >= 0
    assert capacity(lambda number: time.sleep(0.01), workers=4, seconds=0.2) <= 400


@ON_ONE_VERSION
def test_the_long_form_streams_rows_made_on_the_server(
    database: Database, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("_LONG_SERIES", 2), ("_LONG_MINUTES", 2_000), ("_FULL_ROWS", 4_000)):
        monkeypatch.setattr(f"toolkit.bench.memory.{name}", value)
    with prepared(database.dsn, redis_url, "toolkit", TINY, silent) as ground:
        for case in (memory.stream_memory, memory.blocks_memory):
            result = case(replace(ground, is_full=True))
            assert result.points == 4_000
            assert result.unit == "MB"
        assert sum(p.rows for p in ground.store.partitions(LONG.name)) == 0


@pytest.mark.parametrize("is_awaited", [False, True])
def test_contenders_take_turns_and_slow_ones_sit_out(is_awaited: bool) -> None:
    ticks = iter(range(1_000))
    order: list[str] = []

    def act(name: str) -> object:
        async def acted() -> None:
            order.append(name)

        return acted() if is_awaited else order.append(name)

    contenders = [
        Contender("ours", lambda turn: act("ours")),
        Contender("slow", lambda turn: act("slow"), every=2, scale=10.0),
    ]
    clock = lambda: float(next(ticks))  # noqa: E731
    if is_awaited:
        found = asyncio.run(by_turns_awaited(contenders, 4, clock))
    else:
        found = by_turns(contenders, 4, clock)
    assert order[:4] == ["ours", "slow", "slow", "ours"]  # the first turn does not count
    assert (found["ours"].turns, found["slow"].turns) == (4, 2)
    assert found["slow"].p50 == 10 * found["ours"].p50 == 10_000
    cost, gain = (
        compare(found["ours"], found, {"slow": Target(0.5, is_cost=True)}),
        compare(found["ours"], found, {"slow": Target(20.0)}),
    )
    assert (cost[0].ratio, cost[0].is_met) == (0.1, True)
    assert (gain[0].ratio, gain[0].is_met) == (10.0, False)
