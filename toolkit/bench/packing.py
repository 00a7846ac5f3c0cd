"""The cases of making blocks: of history as it comes, and of rows, also beside a load."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from toolkit.bench.blocks import FAR
from toolkit.bench.files import ARCTIC, files
from toolkit.bench.ground import FILLED, PACKED, WRITTEN, Ground, at, bars
from toolkit.bench.load import capacity, open_load
from toolkit.bench.measure import Contender, Result, Target, Timing, by_turns, compare
from toolkit.bench.peers import INGEST
from toolkit.config import load_settings
from toolkit.errors import ToolkitError
from toolkit.store import Store

if TYPE_CHECKING:
    import pyarrow as pa

BACKFILL, COMPRESS, COPY = "store.backfill", "store.compress", "store.write, COPY into rows"
OF_ONE = "store.compress, of one series"
HOT = "hot"
_SERIES = 4  # workers share series, or the partitions of one
_WORKERS = 8  # threads of the load: reads that are due at once
_TIMES, _MORE_MS = 3.0, 10.0  # what compressing may add to a p99: the larger of both


def backfill(ground: Ground) -> Result:
    """Store new series straight as blocks, against writing the same as rows."""
    rows = ground.sizes.packed_rows
    arrays = bars(rows, 0)
    ground.store.write(WRITTEN.name, arrays, series="F")  # makes the partitions, which peers cannot
    table = _with_id(arrays, ground.id_of(WRITTEN.name, "F"))

    def empty(turn: int) -> None:
        for name in ("written", "written_log"):
            ground.execute("TRUNCATE {table}", table=name)

    def fill(turn: int) -> None:
        ground.store.backfill(FILLED.name, arrays, series=f"F{turn}")

    def write(turn: int) -> None:
        ground.store.write(WRITTEN.name, arrays, series="F", mode="insert")

    with files(pd.DataFrame(arrays)) as kept:
        contenders = [
            Contender(BACKFILL, fill),
            Contender(COPY, write, empty),
            Contender(
                INGEST, lambda turn: ground.peers.ingest(table, WRITTEN.name), empty, every=2
            ),
        ]
        if ARCTIC not in kept.missing:
            contenders.append(Contender(f"{ARCTIC} write", lambda turn: kept.write_arctic()))
        found = by_turns(contenders, ground.sizes.write_turns)
        missing = tuple(m for m in kept.absent({}) if m.peer == ARCTIC)
    empty(0)
    answer = ground.store.read(FILLED.name, "F0", at(0), at(rows))
    assert all(np.array_equal(answer.raw(n), arrays[n]) for n in answer)
    compared = compare(found[BACKFILL], found, {COPY: Target(4.0)})
    what = f"{rows:,} candles from arrays into an empty series"
    return Result(
        "blocks_backfill", what, rows, found[BACKFILL], compared, least=2e6, missing=missing
    )


def compress(ground: Ground) -> Result:
    """Make blocks of rows that rollups have followed: of some series, and as many of one."""
    rows = ground.sizes.packed_rows // 2 // _SERIES * _SERIES

    def contender(title: str, series: int) -> Contender:
        made = [bars(rows // series, number) for number in range(series)]

        def names(turn: int) -> list[str]:
            return [f"C{turn}_{series}_{number}" for number in range(series)]

        def fill(turn: int) -> None:
            for name, arrays in zip(names(turn), made, strict=True):
                ground.store.write(PACKED.name, arrays, series=name)
            ground.store.refresh(PACKED.name)

        def pack(turn: int) -> None:
            report = ground.store.compress(PACKED.name, names(turn), end=FAR)
            assert report.points == rows, report

        return Contender(title, pack, fill)

    contenders = [contender(COMPRESS, _SERIES), contender(OF_ONE, 1)]
    found = by_turns(contenders, ground.sizes.write_turns)
    what = f"{rows:,} rows of {_SERIES} series into blocks"
    compared = compare(found[COMPRESS], found, {})
    lines = (f"blocks_compress: of one series {rows / found[OF_ONE].p50 * 1000:,.0f} rows/s",)
    return Result(
        "blocks_compress", what, rows, found[COMPRESS], compared, least=300_000, lines=lines
    )


def compress_under_load(ground: Ground) -> Result:
    """Read at a rate that takes half the machine, alone and while another process compresses.

    It does so gently, as one should beside readers.
    """
    sizes = ground.sizes
    points, rows = sizes.small_read, sizes.packed_rows // 2
    ground.store.backfill(PACKED.name, bars(rows, 0), series=HOT)
    names = ["U0", "U1"]
    for number, name in enumerate(names):
        ground.store.write(PACKED.name, bars(rows, number), series=name)
    ground.store.refresh(PACKED.name)
    firsts = np.random.default_rng(points).integers(0, rows - points, 1_000).tolist()
    ranges = [(at(first), at(first + points)) for first in firsts]

    def act(number: int) -> object:
        return ground.store.read(PACKED.name, HOT, *ranges[number % len(ranges)])

    most = capacity(act, _WORKERS, sizes.load_s / 2)
    rate = most / 2
    alone = open_load(act, rate, _WORKERS, lambda lasted: lasted >= sizes.load_s)
    with _other_process(ground, names) as other:
        beside = open_load(
            act, rate, _WORKERS, lambda lasted: lasted >= 0.2 and other.poll() is not None
        )
        report = _answer(other)
    assert report["points"] == rows * len(names), report
    alone += open_load(act, rate, _WORKERS, lambda lasted: lasted >= sizes.load_s)
    quiet, busy = Timing.of("alone", alone), Timing.of("beside", beside)
    allowed = max(_TIMES * quiet.p99, quiet.p99 + _MORE_MS)
    what = (
        f"p99 of {points:,}-point reads at {rate:,.0f}/s while compressing, against the larger of "
        f"{_TIMES:g} × and {_MORE_MS:g} ms more than without"
    )
    share = busy.p99 / allowed
    ours = Timing("beside / allowed", busy.turns, share, share)
    lines = (
        f"blocks_compress_load: alone p50 {quiet.p50:.2f}, p99 {quiet.p99:.2f} ms; while "
        f"compressing {busy.p50:.2f}, {busy.p99:.2f} ms; {most:,.0f} reads/s at most; "
        f"{report['points'] / report['seconds']:,.0f} rows/s compressed meanwhile",
    )
    return Result("blocks_compress_load", what, points, ours, unit="×", ceiling=1.0, lines=lines)


def _other_process(ground: Ground, names: list[str]) -> subprocess.Popen[str]:
    """Return a process that has connected, and now begins to compress."""
    task = {"dsn": ground.dsn, "schema": ground.schema, "names": names}
    other = subprocess.Popen(
        [sys.executable, "-m", "toolkit.bench.packing"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert other.stdin is not None
    assert other.stdout is not None
    # by standard input: a conninfo on a command line is there for all to see
    other.stdin.write(json.dumps(task) + "\n")
    other.stdin.flush()
    if not other.stdout.readline():
        _answer(other)
    other.stdin.write("go\n")
    other.stdin.flush()
    return other


def _answer(other: subprocess.Popen[str]) -> dict[str, float]:
    out, err = other.communicate()
    if other.returncode:
        raise ToolkitError(f"the compressing process failed: {err.strip()[-500:]}")
    answer: dict[str, float] = json.loads(out)
    return answer


def _with_id(arrays: dict[str, Any], series_id: int) -> pa.Table:
    import pyarrow as pa

    ids = pa.array(np.full(len(arrays["ts"]), series_id, np.int32))
    ts = pa.array(arrays["ts"], pa.timestamp("us", "UTC"))
    values = {n: pa.array(arrays[n]) for n in WRITTEN.names}
    return pa.table({"series_id": ids, "ts": ts, **values})


def main() -> None:
    """Compress what standard input says, once it says go; print what was done."""
    task = json.loads(sys.stdin.readline())
    settings = replace(load_settings(task["dsn"]).without_cache(), schema=task["schema"])
    with Store(replace(settings, dsn=task["dsn"])) as store:
        store.series(PACKED.name)
        print("ready", flush=True)
        sys.stdin.readline()
        report = store.compress(PACKED.name, task["names"], end=FAR, gently=True)
    print(json.dumps({"points": report.points, "seconds": report.seconds}))


if __name__ == "__main__":
    main()
