"""The benchmarks at a tiny size: every case runs, and its JSON is sane."""

from __future__ import annotations

import io
import json
from dataclasses import replace

import pytest
from fix_servers import Database
from rich.console import Console

from toolkit.bench import cli, memory, report
from toolkit.bench.ground import Sizes, prepared
from toolkit.bench.measure import Contender, Target, by_turns, compare

TINY = Sizes(
    series=2,
    minutes=1_500,
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
    turns=4,
    large_turns=2,
    write_turns=2,
)


def silent(text: str) -> None:
    return None


def test_every_case_runs_and_says_what_it_measured(database: Database) -> None:
    findings = cli.Findings()
    with prepared(database.dsn, "toolkit", TINY, silent) as ground:
        cli.measure(ground, list(cli.CASES), findings, silent)
    results = findings.results
    found = json.loads(json.dumps(report.to_mapping(results, findings.server)))
    assert found["machine"]["postgresql"].startswith(database.version)
    assert [case["case"] for case in found["cases"]] == list(cli.CASES)
    for case in found["cases"]:
        assert case["points"] > 0
        assert case["turns"] > 0
        assert isinstance(case["is_met"], bool)
        assert case["comparisons"] or case["ceiling"] is not None
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


def test_peers_and_ours_read_the_same_points(database: Database) -> None:
    with prepared(database.dsn, "toolkit", TINY, silent) as ground:
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


def test_the_long_form_streams_rows_made_on_the_server(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("_LONG_SERIES", 2), ("_LONG_MINUTES", 2_000), ("_FULL_ROWS", 4_000)):
        monkeypatch.setattr(f"toolkit.bench.memory.{name}", value)
    with prepared(database.dsn, "toolkit", TINY, silent) as ground:
        result = memory.stream_memory(replace(ground, is_full=True))
    assert result.points == 4_000
    assert result.unit == "MB"


def test_contenders_take_turns_and_slow_ones_sit_out() -> None:
    ticks = iter(range(1_000))
    order: list[str] = []
    contenders = [
        Contender("ours", lambda turn: order.append("ours")),
        Contender("slow", lambda turn: order.append("slow"), every=2, scale=10.0),
    ]
    found = by_turns(contenders, 4, lambda: float(next(ticks)))
    assert order[:4] == ["ours", "slow", "slow", "ours"]  # the first turn does not count
    assert (found["ours"].turns, found["slow"].turns) == (4, 2)
    assert found["slow"].p50 == 10 * found["ours"].p50 == 10_000
    cost, gain = (
        compare(found["ours"], found, {"slow": Target(0.5, is_cost=True)}),
        compare(found["ours"], found, {"slow": Target(20.0)}),
    )
    assert (cost[0].ratio, cost[0].is_met) == (0.1, True)
    assert (gain[0].ratio, gain[0].is_met) == (10.0, False)
