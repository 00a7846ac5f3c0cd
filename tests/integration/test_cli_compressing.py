"""Compression from a shell: what is printed, what is asked, and how it ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import psycopg
import pytest
from fix_cli import Run
from fix_compressing import CLOSED, END, MIDDLE, START, blocks_of, fill, frame, rows_of
from fix_servers import PROJECT, Database

import toolkit
from toolkit.dataset import CANDLES
from toolkit.errors import counted


@pytest.fixture
def rows(blocking: toolkit.Store, database: Database, sql: psycopg.Connection) -> int:
    """How many candles there are."""
    fill(blocking, database, CANDLES)
    return rows_of(sql, "candles")


def test_there_and_back(run: Run, rows: int, sql: psycopg.Connection) -> None:
    said = json.loads(run("compress", "candles", "--to", CLOSED, "--json").stdout)
    assert said["dry_run"] is False
    assert said["report"]["points"] == rows
    assert said["report"]["blocks"] == blocks_of(sql, "candles")
    shown = run("compress", "candles", "--after", "30d").stdout
    assert shown.startswith("nothing to compress before 20")
    assert shown.endswith(f"Z: {rows:,} points are in blocks\n")
    shown = run("stats", "candles").stdout
    assert "in blocks" in shown
    assert f"{rows:,}" in shown
    (figures,) = json.loads(run("stats", "candles", "--json").stdout)
    assert (figures["block_points"], figures["blocks"]) == (rows, blocks_of(sql, "candles"))
    assert (
        f"{blocks_of(sql, 'candles')} blocks of {rows:,} points" in run("verify", "candles").stdout
    )
    report = run("decompress", "candles", "--yes", "--json").stdout
    assert json.loads(report)["report"]["points"] == rows == rows_of(sql, "candles")


def test_a_dry_run_says_what_it_would_save_and_from_what_it_knows(
    run: Run, rows: int, sql: psycopg.Connection
) -> None:
    shown = run("compress", "candles", "B", "--to", MIDDLE, "--dry-run").stdout
    assert "bytes of rows now" in shown
    assert "bytes of blocks then" in shown
    assert "smaller by" in shown
    assert "expected from a sample: 346 of 346 points were encoded; the bytes of rows" in shown
    assert "the free space in them is among these; nothing was changed" in shown
    said = json.loads(run("compress", "candles", "--to", CLOSED, "--dry-run", "--json").stdout)
    assert said["dry_run"] is True
    assert (said["report"]["points"], said["report"]["blocks"]) == (rows, 0)
    assert 0 < said["report"]["block_bytes"] < said["report"]["row_bytes"]
    assert (rows_of(sql, "candles"), blocks_of(sql, "candles")) == (rows, 0)


def test_late_points_are_folded(
    run: Run, rows: int, blocking: toolkit.Store, sql: psycopg.Connection
) -> None:
    run("compress", "candles", "--to", CLOSED)
    blocking.write("candles", frame(CANDLES, 30, 8), series="A")
    assert rows_of(sql, "candles") == 30
    nothing = "nothing to recompress: no point was written there since it was compressed\n"
    assert run("recompress", "candles", "--from", END).stdout == nothing
    assert run("recompress", "candles", "B").stdout == nothing
    shown = run("recompress", "candles", "A", "--to", END).stdout
    assert "30 points recompressed in" in shown
    assert rows_of(sql, "candles") == 0


def test_decompress_asks(run: Run, rows: int, sql: psycopg.Connection) -> None:
    nothing = "nothing to decompress: there is no block there\n"
    assert run("decompress", "candles").stdout == nothing  # nothing to ask
    run("compress", "candles", "--to", CLOSED)
    blocks = blocks_of(sql, "candles")
    held = "SELECT count(*), sum(_rows) FROM candles_blocks AS b JOIN series AS s "
    held += "ON s.id = b.series_id AND s.name = 'B'"
    for more, where in (([], ""), (["--from", MIDDLE], f" WHERE b.hi > '{MIDDLE}'")):
        count, points = sql.execute(held + where).fetchall()[0]  # type: ignore[call-overload]
        said = run("decompress", "candles", "B", *more, input="n\n", code=1).stderr
        assert f"Make rows of {points:,} points of dataset 'candles'" in said
        assert f"that are in {counted(count, 'blocks')} of " in said
        shown = run("decompress", "candles", "B", *more, "--dry-run", "--json").stdout
        report = json.loads(shown)["report"]
        assert (report["points"], report["blocks"]) == (points, count)
    assert "nothing was changed" in run("decompress", "candles", "--dry-run").stdout
    assert "give --yes where nobody can be asked" in run("decompress", "candles", code=1).stderr
    assert blocks_of(sql, "candles") == blocks
    run("decompress", "candles", "B", "--from", MIDDLE, input="y\n")
    assert blocks_of(sql, "candles") == blocks - 1


def test_an_age_is_asked_for_where_the_dataset_has_none(run: Run, rows: int) -> None:
    said = run("compress", "candles", code=2).stderr
    assert "dataset 'candles' has no compress_after" in said
    assert "--to or --after" in said


def test_what_cannot_be_compressed_yet_is_said(
    run: Run, rows: int, sql: psycopg.Connection
) -> None:
    sql.execute("ANALYZE candles")
    shown = run("compress", "candles", "--to", "2024-01-02").stdout
    assert "nothing to compress before 2024-01-02T00:00Z: there are no points; the oldest" in shown
    assert shown.endswith(
        "are in the partition that ends 2024-02-01T00:00Z: --to 2024-02-01T00:00Z takes them\n"
    )
    run("compress", "candles", "--to", MIDDLE)
    shown = run("compress", "candles", "--to", MIDDLE, "--dry-run").stdout
    assert "points are in blocks; the oldest rows, some " in shown
    assert shown.endswith("--to 2024-03-01T00:00Z takes them\n")


def test_the_age_is_set_and_shown(run: Run, rows: int) -> None:
    assert "; not compressed by itself" in run("datasets", "show", "candles").stdout
    shown = run("datasets", "set", "candles", "--compress-after", "30d").stdout
    assert shown.startswith("dataset 'candles': compressed when older than 30d; rows kept for ever")
    assert "; compressed when older than 30d" in run("datasets", "show", "candles").stdout
    assert json.loads(run("compress", "candles", "--json").stdout)["report"]["points"] == rows
    said = run("datasets", "set", "candles", "--compress-after", "never", "--json").stdout
    assert json.loads(said) == {"dataset": "candles", "compress_after": "", "retain": {}}
    ages = ("--retain-rows", "90d", "--retain-blocks", "1y", "--retain-rollup", "5m=2y")
    said = run("datasets", "set", "candles", *ages, "--json").stdout
    kept = {"rows": "90d", "blocks": "1y", "rollups": {"5m": "2y"}}
    assert json.loads(said)["retain"] == kept
    said = run("datasets", "set", "candles", "--retain-rollup", "5m=forever").stdout
    assert "not compressed by itself; rows kept for 90d, blocks kept for 1y\n" in said
    assert "blocks kept for 1y" in run("datasets", "show", "candles").stdout
    for bad in (("--retain-rows", "xx"), ("--retain-blocks", "0d"), ("--retain-rollup", "5m=-1d")):
        said = run("datasets", "set", "candles", "--compress-after", "3d", *bad, code=2).stderr
        assert f"retain {bad[0].removeprefix('--retain-').replace('rollup', '5m')}: " in said
    said = run("datasets", "set", "candles", "--retain-rollup", "5m=1d", code=1).stderr
    assert "before its points do" in said
    assert "give --compress-after" in run("datasets", "set", "candles", code=2).stderr
    said = run("datasets", "set", "candles", "--compress-after", "soon", code=2).stderr
    assert "unknown step 'soon'" in said


def test_partitions_are_listed_with_what_they_hold(run: Run, rows: int) -> None:
    done = json.loads(run("compress", "candles", "--to", MIDDLE, "--json").stdout)["report"]
    shown = run("datasets", "partitions", "candles").stdout.splitlines()
    first, second = [line for line in shown if "2024" in line]
    assert first.split()[:4] == ["2024-01-01", "00:00:00Z", "2024-02-01", "00:00:00Z"]
    packed, still = json.loads(run("datasets", "partitions", "candles", "--json").stdout)
    assert (packed["start"], packed["end"]) == ("2024-01-01T00:00:00Z", "2024-02-01T00:00:00Z")
    assert (packed["blocks"], packed["block_points"]) == (done["blocks"], done["points"])
    assert (still["blocks"], still["block_points"], still["block_bytes"]) == (0, 0, 0)
    assert f"{done['points']:,}" in first
    assert second.split()[-2:] == ["0", "B"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["compress", "candles", "--to", "now", "--after", "3d"], "not both"),
        (["compress", "candles", "--after", "soon"], "--after: unknown step 'soon'"),
        (["compress", "candle", "--to", "now"], "did you mean 'candles'"),
        (["compress", "candles", "nosuch", "--to", "now"], "unknown series 'nosuch'"),
        (["recompress", "candles", "--from", "now", "--to", "now-3d"], "is before start"),
        (["decompress", "candle", "--yes"], "did you mean 'candles'"),
        (["decompress", "candles", "nosuch", "--yes"], "unknown series 'nosuch'"),
        (["verify", "candles", "--from", "x"], "--from: 'x' is not a time"),
        (["verify", "candle"], "did you mean 'candles'"),
    ],
)
def test_what_cannot_be_is_a_sentence_and_exit_code_2(
    run: Run, arguments: list[str], said: str
) -> None:
    assert said in run(*arguments, code=2).stderr


def test_all_that_is_left_is_busy(run: Run, rows: int, sql: psycopg.Connection) -> None:
    run("compress", "candles", "A", "--to", CLOSED)
    with sql.transaction():
        sql.execute("SELECT FROM candles FOR UPDATE")
        result = run("compress", "candles", "--to", MIDDLE, "--json", code=4)
    assert json.loads(result.stdout)["report"]["busy"] == 1
    assert "somebody else held 1 of the spans, nothing was done; run it again" in result.stderr
    with sql.transaction():
        sql.execute("SELECT FROM candles WHERE ts >= %s FOR UPDATE", [MIDDLE])
        result = run("compress", "candles", "--to", CLOSED)
    assert "somebody else held 1 of the spans; run it again for the rest" in result.stderr
    run("compress", "candles", "--to", CLOSED)
    assert rows_of(sql, "candles") == 0


def test_an_interruption_says_what_is_done(
    rows: int, blocking: toolkit.Store, database: Database, sql: psycopg.Connection
) -> None:
    for n in range(8):  # each waits for a second, as long as they are held
        blocking.write("candles", frame(CANDLES, 5, n), series=f"held-{n}")
    blocking.refresh("candles")
    code = "from toolkit.cli import main; main(prog_name='toolkit')"
    command = [sys.executable, "-c", code, "compress", "candles", "--to", CLOSED]
    paths = os.pathsep.join(map(str, (PROJECT, PROJECT / "routing", PROJECT / "maintenance")))
    with sql.transaction():
        sql.execute(
            "SELECT FROM candles AS c JOIN series AS s ON s.id = c.series_id "
            "WHERE s.name LIKE 'held-%' FOR UPDATE OF c"
        )
        with subprocess.Popen(
            command,
            env=os.environ | {"TOOLKIT_DSN": database.dsn, "PYTHONPATH": paths},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            until = time.monotonic() + 60
            # not by sql: a transaction that has locked a table hears of no new partition of it
            while not blocking.describe("candles").blocks and time.monotonic() < until:
                assert process.poll() is None, process.communicate()
                time.sleep(0.02)
            process.send_signal(signal.SIGINT)
            out, said = process.communicate(timeout=60)
    assert (process.returncode, out) == (130, "")
    assert said.startswith("Error: interrupted; ")
    assert "are done and stay so, nothing is half done; the same command goes on" in said
    left = rows_of(sql, "candles")
    assert 0 < left < rows
    assert blocking.compress("candles", end=CLOSED).points == left


def test_verify_says_what_is_damaged_and_exits_1(
    run: Run, rows: int, sql: psycopg.Connection
) -> None:
    run("compress", "candles", "--to", CLOSED)
    assert "none damaged" in run("verify", "candles").stdout
    sql.execute(
        "UPDATE candles_blocks AS b SET open = set_byte(open, 30, get_byte(open, 30) # 4) "
        "FROM series AS s WHERE s.id = b.series_id AND s.name = 'B' AND b.lo < %s",
        [MIDDLE],
    )
    shown = run("verify", "candles", code=1).stdout
    assert "dataset 'candles', series 'B', block [2024-01-" in shown
    assert "column 'open': the checksum does not match" in shown
    assert "columns that decode: ts, high, low, close, volume" in shown
    assert "1 damaged" in shown
    said = json.loads(run("verify", "candles", "--json", code=1).stdout)
    (damage,) = said["damaged"]
    assert (damage["series"], damage["is_readable"]) == ("B", False)
    assert damage["columns"] == ["ts", "high", "low", "close", "volume"]
    assert set(damage["bars"]) == {"5m", "1h", "1d"}
    assert said["points"] == rows
    run("verify", "candles", "A")
    run("verify", "candles", "--from", MIDDLE, "--to", END)
    error = run("query", "candles", "B", START, END, code=1).stderr
    assert "toolkit verify says what is damaged" in error
