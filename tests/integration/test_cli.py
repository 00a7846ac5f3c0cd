"""The command line against real servers: what each command does, and every wrong input."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import psycopg
import pyarrow as pa
import pytest
from click.testing import Result
from fix_cli import Run, write_bars
from fix_servers import Database
from pyarrow import feather, parquet

BLOCK_SIZE = "toolkit.cli.loading.delimited.DelimitedFile.__init__.__defaults__"
NAMES = [
    'it\'s "quoted"',
    "100% %s %(x)s",
    "a; DROP SCHEMA toolkit CASCADE; --",
    "x" * 300,
    "🚀 BTC–USD 比特币",
    "-dash",
    "[bold]markup[/bold] :smile:",
    "comma, and\nline end",
    "\\ \\x00 {} $HOME",
    "NaN",
    " ",
]


@pytest.fixture
def bars(tmp_path: Path) -> Callable[..., Path]:
    """Writes a CSV of minute bars from 2024-01-01, perhaps with lines of one's own in it."""

    def bars(count: int, lines: dict[int, str] | None = None, name: str = "bars.csv") -> Path:
        return write_bars(tmp_path / name, count, lines)

    return bars


def rows_of(database: Database, dataset: str = "candles") -> int:
    with psycopg.connect(database.dsn) as connection:
        found = connection.execute(f"SELECT count(*) FROM toolkit.{dataset}").fetchone()
    assert found is not None
    return int(found[0])


def answer(result: Result) -> dict[str, Any]:
    """The JSON of an answer; strict: NaN is not JSON."""

    def refuse(text: str) -> float:
        raise AssertionError(text)

    found: dict[str, Any] = json.loads(result.stdout, parse_constant=refuse)
    return found


# -- loading ------------------------------------------------------------------------------------


def test_file_is_loaded_read_and_loaded_again(run: Run, bars: Any, database: Database) -> None:
    path = str(bars(3_000))
    load = ("load", path, "--dataset", "candles", "--series", "BTC-USD")
    assert "3,000 rows of 1 series: 3,000 inserted" in run(*load).stdout
    report = json.loads(run(*load, "--json").stdout)["report"]
    assert (report["received"], report["unchanged"], report["chunks"]) == (3_000, 3_000, 1)
    assert "3,000 the key exists" in run(*load, "--mode", "ignore").stdout
    said = run(*load, "--mode", "insert", code=1).stderr
    assert "series 'BTC-USD' has a point at 2024-01-01T00:00Z already" in said
    assert rows_of(database) == 3_000
    day = run("query", "candles", "BTC-USD", "2024-01-01", "2024-01-02", "--step", "1d", "--json")
    (row,) = answer(day)["rows"]
    assert (row["open"], row["close"], row["high"], row["low"]) == (0, 1439.5, 1440, -1)


def test_dry_run_says_what_is_new_and_stores_nothing(
    run: Run, bars: Any, database: Database
) -> None:
    load = ("load", str(bars(100)), "--dataset", "candles", "--series", "A", "--dry-run")
    found = json.loads(run(*load, "--json").stdout)
    assert found == {
        "dry_run": True,
        "rows": 100,
        "series": {"A": 100},
        "start": "2024-01-01T00:00Z",
        "last": "2024-01-01T01:39Z",
        "new_series": ["A"],
        "new_partitions": ["2024-01-01T00:00Z"],
    }
    assert "checked, nothing stored" in run(*load).stdout
    assert rows_of(database) == 0
    assert json.loads(run("series", "candles", "--json").stdout) == []
    run(*load[:-1])
    again = json.loads(run(*load, "--json").stdout)
    assert (again["new_series"], again["new_partitions"]) == ([], [])


def test_broken_line_in_the_middle_is_named_and_nothing_is_loaded(
    run: Run, bars: Any, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(BLOCK_SIZE, (",", 4_000))
    good = bars(50, name="good.csv")
    path = bars(2_000, {1_201: "2024-01-01T20:00:00Z,1,2,3,not a number,5"})
    result = run(
        "load", str(good), str(path), "--dataset", "candles", "--series", "BTC-USD", code=1
    )
    assert result.stderr == (
        f"Error: {path}, line 1201: column 'close': 'not a number' is not a number; "
        "nothing was stored\n"
    )
    assert rows_of(database) == 0
    assert json.loads(run("series", "candles", "--json").stdout) == []


def test_large_file_is_stored_in_pieces(
    run: Run, bars: Any, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(BLOCK_SIZE, (",", 20_000))
    load = ("load", str(bars(5_000)), "--dataset", "candles", "--series", "A", "--json")
    report = json.loads(run(*load).stdout)["report"]
    assert report["inserted"] == rows_of(database) == 5_000
    assert report["chunks"] > 5


def test_what_is_stored_of_a_broken_off_load_is_said(
    run: Run, bars: Any, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(BLOCK_SIZE, (",", 20_000))
    load = ("load", str(bars(5_000)), "--dataset", "candles", "--series", "A", "--mode", "insert")
    last = bars(1, {2: "2024-01-04T11:00:00Z,1,2,3,4,5"}, name="last.csv")
    run("load", str(last), "--dataset", "candles", "--series", "A")
    result = run(*load, code=1)
    assert "rows, are stored; nothing of this one is" in result.stderr
    assert "can simply be run again" in result.stderr
    assert 1 < rows_of(database) < 5_000
    run(*load[:-2])
    assert rows_of(database) == 5_000


@pytest.mark.parametrize("kind", ["csv", "parquet", "feather"])
def test_every_format_gives_the_same_rows(run: Run, tmp_path: Path, kind: str) -> None:
    ts = pd.date_range("2024-01-01", periods=500, freq="1s", tz="UTC").as_unit("us")
    frame = pd.DataFrame({"ts": ts, "value": np.linspace(-1, 1, 500), "series": "cpu"})
    frame.loc[7, "value"] = np.nan
    path = tmp_path / f"metrics.{kind}"
    if kind == "csv":
        frame.to_csv(path, index=False)
    elif kind == "parquet":
        frame.to_parquet(path)
    else:
        feather.write_feather(frame, str(path))
    run("load", str(path), "--dataset", "metrics")
    got = answer(run("query", "metrics", "cpu", "2024-01-01", "2024-01-02", "--json"))["rows"]
    assert got[7]["value"] is None
    values = [row["value"] for row in got]
    np.testing.assert_array_equal(np.array(values, float), frame["value"])
    assert got[1]["ts"] == "2024-01-01T00:00:01.000000Z"


def test_real_bars_and_trades_are_loaded(run: Run, shared_data: Path, database: Database) -> None:
    perp = str(shared_data / "btc_perp_1m_2022-01.csv")
    load = ("load", perp, "--dataset", "candles", "--series", "BTC-PERP")
    assert "--tz UTC" in run(*load, code=1).stderr
    assert "45,031 inserted" in run(*load, "--tz", "UTC").stdout
    pound = str(shared_data / "gbpusd_1m_2012-02.csv")
    said = run("load", pound, "--dataset", "candles", "--series", "GBP/USD")
    assert "not in the file, stored as NULL: volume" in said.stderr
    assert rows_of(database) == 45_031 + 30_117
    trades = str(shared_data / "xrp_eth_trades_2019-10.feather")
    load_trades = (
        "load",
        trades,
        "--dataset",
        "trades",
        "--series",
        "XRP/ETH",
        "--time-unit",
        "ms",
    )
    assert "--ignore-extra" in run(*load_trades, code=1).stderr
    maps = ("--map", "size=amount", "--map", "seq=id", "--map", "-type", "--map", "-cost")
    assert "12,477 inserted" in run(*load_trades, *maps).stdout
    newest = answer(run("latest", "trades", "--json"))["rows"]
    assert [(r["series"], r["seq"], r["side"]) for r in newest] == [("XRP/ETH", 13532283, "sell")]


@pytest.mark.parametrize("name", NAMES)
def test_any_name_is_taken_as_it_is(run: Run, bars: Any, name: str) -> None:
    run("load", str(bars(3)), "--dataset", "candles", "--series", name)
    assert [s["name"] for s in json.loads(run("series", "candles", "--json").stdout)] == [name]
    labelled = run("label", "candles", "--json", "--", name, f"what={name}")
    assert json.loads(labelled.stdout)["labels"] == {"what": name}
    options = ("--json", "--label", f"what={name}")
    found = answer(run("query", "candles", "2024-01-01", "2024-01-02", *options))
    assert [row["series"] for row in found["rows"]] == [name] * 3
    table = run("query", "candles", "--", name, "2024-01-01", "2024-01-02").stdout
    assert "3 rows of 1 series" in table
    for command in (("series", "candles"), ("latest", "candles")):
        assert "Error" not in run(*command).output
    deleted = run("delete", "candles", "--yes", "--", name, "2024-01-01", "2024-01-02")
    assert deleted.stdout == "3 points deleted\n"


@pytest.mark.parametrize("name", NAMES)
def test_answer_written_as_csv_is_loaded_back(
    run: Run, bars: Any, name: str, tmp_path: Path
) -> None:
    run("load", str(bars(5)), "--dataset", "candles", "--series", name)
    out = tmp_path / "out.csv"
    run("query", "candles", "2024-01-01", "2024-01-02", "--csv", str(out))
    with out.open(encoding="utf-8", newline="") as file:
        assert [row["series"] for row in csv.DictReader(file)] == [name] * 5
    assert "5 unchanged" in run("load", str(out), "--dataset", "candles").stdout


@pytest.mark.parametrize("name", ["", "x" * 501, "a\0b"])
def test_name_that_cannot_be_one_is_refused(run: Run, bars: Any, name: str) -> None:
    result = run("load", str(bars(3)), "--dataset", "candles", "--series", name, code=1)
    assert "series name" in result.stderr
    assert len(result.stderr) < 500


# -- reading ------------------------------------------------------------------------------------


@pytest.fixture
def loaded(run: Run, bars: Any) -> Run:
    """The command, with 3,000 bars of two series that carry labels."""
    path = str(bars(3_000))
    for name, venue in (("BTC-USD", "kraken"), ("ETH-USD", "kraken"), ("SOL-USD", "coinbase")):
        run("load", path, "--dataset", "candles", "--series", name)
        run("label", "candles", name, f"venue={venue}")
    return run


def test_query_prints_forty_rows_and_how_they_were_come_by(loaded: Run) -> None:
    result = loaded("query", "candles", "BTC-USD", "2024-01-01", "2024-01-03")
    lines = result.stdout.strip().splitlines()
    assert sum(line.lstrip().startswith("BTC-USD") for line in lines) == 40
    assert sum("…" in line for line in lines) == 1
    assert "2,880 rows of 1 series; 2,880 rows touched" in result.stdout
    assert lines[-1].startswith("direct: ")
    assert "\x1b" not in result.output


def test_query_options_reach_the_question(loaded: Run) -> None:
    span = ("2024-01-01", "2024-01-02")
    ask = ("query", "candles", "BTC-USD", *span, "--json")
    bars = answer(loaded(*ask, "--step", "6h", "--agg", "close=avg,count", "--columns", "high"))
    assert list(bars["types"]) == ["high", "close_avg", "close_count"]
    assert [row["close_count"] for row in bars["rows"]] == [360] * 4
    assert bars["plan"]["step"] == "6h"
    forced = answer(loaded(*ask, "--step", "6h", "--strategy", "direct"))
    assert forced["plan"]["strategy"] == "direct"
    some = answer(
        loaded(*ask, "--where", "volume>=6", "--where", "close<100", "--columns", "close")
    )
    assert [row["close"] for row in some["rows"]] == [i + 0.5 for i in range(6, 100, 7)]
    newest = answer(loaded(*ask, "--limit", "2", "--descending"))["rows"]
    assert [row["close"] for row in newest] == [1439.5, 1438.5]
    chart = answer(loaded(*ask, "--points", "50"))["rows"]
    assert 3 <= len(chart) <= 50
    auto = answer(loaded(*ask, "--step", "auto", "--timeout", "20"))
    assert auto["plan"]["step"] is not None
    labelled = answer(
        loaded("query", "candles", *span, "--label", "venue=kraken", "--limit", "1", "--json")
    )
    assert labelled["rows"][0]["series"] == "BTC-USD"
    grouped = answer(
        loaded("query", "candles", *span, "--step", "1d", "--group-by", "venue", "--json")
    )
    assert [row["series"] for row in grouped["rows"]] == ["coinbase", "kraken"]
    two = answer(loaded("query", "candles", "BTC-USD", "ETH-USD", *span, "--step", "1d", "--json"))
    assert [row["series"] for row in two["rows"]] == ["BTC-USD", "ETH-USD"]


def test_times_without_offset_are_read_and_shown_in_the_zone(loaded: Run) -> None:
    ask = ("query", "candles", "BTC-USD", "2024-01-01 09:00", "2024-01-01 09:02")
    table = loaded(*ask, "--tz", "Asia/Tokyo").stdout
    assert "ts (Asia/Tokyo)" in table
    assert "2024-01-01 09:00" in table
    rows = answer(loaded(*ask, "--tz", "Asia/Tokyo", "--json"))["rows"]
    assert [row["ts"] for row in rows] == [
        "2024-01-01T00:00:00.000000Z",
        "2024-01-01T00:01:00.000000Z",
    ]


@pytest.mark.parametrize("form", ["csv", "parquet", "png"])
def test_answer_is_written_whole_or_not_at_all(loaded: Run, tmp_path: Path, form: str) -> None:
    ask = ("query", "candles", "2024-01-01", "2024-01-02", "--step", "1h", f"--{form}")
    out = tmp_path / f"out.{form}"
    out.write_text("old")
    result = loaded(*ask, str(out))
    assert result.stdout == ""
    assert "72 rows written" in result.stderr
    assert [p.name for p in tmp_path.iterdir() if p.suffix != ".csv" or p == out] == [out.name]
    data = out.read_bytes()
    if form == "parquet":
        assert parquet.read_table(pa.BufferReader(data)).num_rows == 72
    elif form == "csv":
        assert data.startswith(b"series,ts,open,high,low,close,volume,vwap\nBTC-USD,2024-01-01T00:")
        assert loaded(*ask).stdout_bytes == data
    else:
        assert data.startswith(b"\x89PNG")
        assert loaded(*ask, "-").stdout_bytes.startswith(b"\x89PNG")
    missing = loaded(*ask, str(tmp_path / "no" / "x.y"), code=1)
    assert "No such file or directory" in missing.stderr


def test_values_that_are_no_numbers_are_valid_json_and_come_back(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "m.csv"
    text = "series,ts,value\n" + "".join(
        f"x,2024-01-01T00:00:0{i}Z,{v}\n" for i, v in enumerate(["inf", "-inf", "", "1e308", "0.1"])
    )
    path.write_text(text)
    run("load", str(path), "--dataset", "metrics")
    rows = answer(run("query", "metrics", "x", "2024-01-01", "2024-01-02", "--json"))["rows"]
    assert [r["value"] for r in rows] == ["Infinity", "-Infinity", None, 1e308, 0.1]
    out = str(tmp_path / "out.csv")
    run("query", "metrics", "x", "2024-01-01", "2024-01-02", "--csv", out)
    assert "5 unchanged" in run("load", out, "--dataset", "metrics").stdout
    assert "inf" in run("query", "metrics", "x", "2024-01-01", "2024-01-02").stdout


def test_explain_latest_series_datasets_and_stats(loaded: Run) -> None:
    span = ("2024-01-01", "2024-01-02")
    plan = loaded("explain", "candles", "BTC-USD", *span, "--step", "1h", "--analyze").stdout
    assert "actual" in plan
    found = answer(loaded("explain", "candles", "BTC-USD", *span, "--json"))
    assert set(found) == {"plan", "statement", "database"}
    newest = answer(loaded("latest", "candles", "-n", "2", "--columns", "close", "--json"))["rows"]
    assert [row["close"] for row in newest] == [2998.5, 2999.5] * 3
    day = answer(loaded("latest", "candles", "BTC-USD", "--step", "1d", "--json"))["rows"]
    assert [row["ts"] for row in day] == ["2024-01-03T00:00:00.000000Z"]
    kraken = json.loads(loaded("series", "candles", "--label", "venue=kraken", "--json").stdout)
    assert kraken[0] == {"name": "BTC-USD", "step_seconds": 60.0, "labels": {"venue": "kraken"}}
    assert len(kraken) == 2
    loaded("label", "candles", "BTC-USD", "--remove", "venue")
    assert "kraken" not in loaded("latest", "candles", "BTC-USD").stdout
    names = [d["name"] for d in json.loads(loaded("datasets", "--json").stdout)]
    assert names == ["candles", "trades", "metrics"]
    assert "weighted by" in loaded("datasets", "show", "trades").stdout
    (stats,) = json.loads(loaded("stats", "candles", "--json").stdout)
    assert (stats["series"], stats["partitions"], stats["refreshed_at"]) == (3, 1, None)
    assert stats["unfollowed"] > 0
    assert "never" in loaded("stats").stdout


def test_refresh_brings_what_is_unfollowed_to_nothing(loaded: Run) -> None:
    report = json.loads(loaded("refresh", "candles", "--json").stdout)
    assert report["counts"]["buckets_computed"] == 1800 + 150 + 9
    (stats,) = json.loads(loaded("stats", "candles", "--json").stdout)
    assert stats["unfollowed"] == 0
    assert stats["refreshed_at"].endswith("Z")
    assert stats["rollup_bytes"] > 0
    assert "refresh: nothing" in loaded("refresh").stdout


def test_delete_asks_first(loaded: Run, database: Database) -> None:
    ask = ("delete", "candles", "BTC-USD", "2024-01-01", "2024-01-02")
    assert loaded(*ask, "--dry-run").stdout == "1,440 points would be deleted\n"
    refused = loaded(*ask, code=1, input="n\n")
    assert "Delete 1,440 points of 1 series?" in refused.stderr
    assert "nothing was done" in refused.stderr
    assert "--yes" in loaded(*ask, code=1).stderr
    assert rows_of(database) == 9_000
    assert loaded(*ask, input="y\n").stdout == "1,440 points deleted\n"
    assert loaded(*ask).stdout == "0 points deleted\n"
    two = ("delete", "candles", "BTC-USD", "ETH-USD", "2024-01-01", "2024-01-03", "--json")
    assert json.loads(loaded(*two, "--yes").stdout) == {"dry_run": False, "points": 4_320}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("query", "candle", "2024-01-01", "now"), "did you mean 'candles'"),
        (("query", "candles", "BTC-USDT", "2024-01-01", "now"), "did you mean 'BTC-USD'"),
        (("query", "candles", "BTC-USD", "2024-01-02", "2024-01-01"), "before start"),
        (("query", "candles", "BTC-USD", "soon", "now"), "START: 'soon' is not a time"),
        (("query", "candles", "2024-01-01", "now", "--step", "5x"), "unknown step"),
        (("query", "candles", "2024-01-01", "now", "--tz", "Mars/Base"), "unknown time zone"),
        (("query", "candles", "2024-01-01", "now", "--columns", "clos"), "did you mean 'close'"),
        (("query", "candles", "2024-01-01", "now", "--agg", "close=max"), "needs a step"),
        (("query", "candles", "2024-01-01", "now", "--where", "close>x"), "no value for close"),
        (("query", "candles", "2024-01-01", "now", "--limit", "0"), "at least 1"),
        (("latest", "candles", "-n", "0"), "at least 1"),
        (("series", "nosuch"), "unknown dataset"),
        (("datasets", "show", "nosuch"), "unknown dataset"),
        (("stats", "nosuch"), "unknown dataset"),
        (("refresh", "nosuch"), "unknown dataset"),
        (("label", "candles", "nosuch", "a=b"), "unknown series"),
        (("delete", "candles", "nosuch", "2024-01-01", "now", "--yes"), "unknown series"),
    ],
)
def test_wrong_question_is_a_sentence_and_exit_code_2(
    loaded: Run, arguments: tuple[str, ...], said: str
) -> None:
    result = loaded(*arguments, code=2)
    assert said in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert result.stdout == ""
