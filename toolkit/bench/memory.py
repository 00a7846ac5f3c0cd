"""The memory cases: how far streaming many points lifts a process above its idle self."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np

from toolkit.bench.blocks import FAR, fill_cold
from toolkit.bench.ground import COLD, LONG, MINUTE, START, Ground, at
from toolkit.bench.measure import Result, Timing
from toolkit.errors import ToolkitError
from toolkit.store import Store
from toolkit.timegrid import to_us

_LONG_SERIES = 10
_LONG_MINUTES = 1_000_000
_FULL_ROWS = _LONG_SERIES * _LONG_MINUTES
_MB = 1 << 20


def stream_memory(ground: Ground) -> Result:
    """Stream rows in a process of its own, and take its peak above what it needed when idle."""
    if ground.is_full:
        _make_long(ground)
        return _streamed(ground, "stream_memory", LONG.name, _FULL_ROWS, _LONG_MINUTES)
    return _streamed(ground, "stream_memory", "candles", *_some(ground))


def blocks_memory(ground: Ground) -> Result:
    """Stream the same out of blocks."""
    if ground.is_full:
        _make_long(ground)
        ground.store.compress(LONG.name, end=FAR)
        return _streamed(ground, "blocks_memory", LONG.name, _FULL_ROWS, _LONG_MINUTES)
    fill_cold(ground)
    return _streamed(ground, "blocks_memory", COLD.name, *_some(ground))


def _some(ground: Ground) -> tuple[int, int]:
    """Return how many rows to stream of the bars, and the minute where these end."""
    minutes = ground.sizes.minutes
    return min(ground.sizes.streamed_rows, ground.sizes.series * minutes), minutes


def _streamed(ground: Ground, case: str, dataset: str, rows: int, end: int) -> Result:
    task = {
        "dsn": ground.dsn,
        "schema": ground.schema,
        "dataset": dataset,
        "rows": rows,
        "end": at(end),
    }
    # by standard input: a conninfo on a command line is there for all to see
    done = subprocess.run(  # this program
        [sys.executable, "-m", "toolkit.bench.memory"],
        input=json.dumps(task),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise ToolkitError(f"the streaming process failed: {done.stderr.strip()[-500:]}")
    answer = json.loads(done.stdout)
    assert answer["rows"] >= rows, answer
    taken = Timing("stream", 1, answer["more_mb"], answer["more_mb"])
    kind = "rows" if case == "stream_memory" else "points out of blocks"
    what = f"memory to stream {answer['rows']:,} {kind}, above idle"
    return Result(case, what, answer["rows"], taken, unit="MB", ceiling=150.0)


def measure(task: dict[str, object]) -> dict[str, float]:
    """Stream until there were enough rows; return how many, and the megabytes above idle."""
    from dataclasses import replace

    from toolkit.config import load_settings

    dsn, dataset, rows = str(task["dsn"]), str(task["dataset"]), int(str(task["rows"]))
    settings = replace(load_settings(dsn).without_cache(), dsn=dsn, schema=str(task["schema"]))
    with Store(settings) as store:
        names = [s.name for s in store.series(dataset)]
        store.read(dataset, names[0], START, at(10))  # connected, everything imported
        idle = _resident("VmRSS")
        count, total = 0, 0.0
        for piece in store.stream(dataset, names, START, str(task["end"])):
            count += len(piece)
            total += float(np.sum(piece.raw("close")))
            if count >= rows:
                break
        return {"rows": count, "sum": total, "more_mb": (_resident("VmHWM") - idle) / _MB}


def _resident(field: str) -> int:
    """Return the process's resident bytes now (VmRSS) or at their most (VmHWM)."""
    with open("/proc/self/status", encoding="ascii") as status:
        line = next(line for line in status if line.startswith(field))
    return int(line.split()[1]) * 1024


def _make_long(ground: Ground) -> None:
    """Make ten million rows on the server."""
    if ground.store.series(LONG.name):
        return
    for number in range(_LONG_SERIES):
        name = f"L{number}"
        first = {"ts": [at(0)], "close": [1.0]}
        ground.store.write(LONG.name, first, series=name)
    ends = np.arange(0, _LONG_MINUTES, 10_000)  # a point in each partition makes it
    marks = (to_us(START) + MINUTE * ends).view("M8[us]")
    ground.store.write(LONG.name, {"ts": marks, "close": np.ones(len(ends))}, series="L0")
    for number in range(_LONG_SERIES):
        series_id = ground.id_of(LONG.name, f"L{number}")
        ground.execute(
            """
            INSERT INTO {table} (series_id, ts, open, high, low, close, volume)
            SELECT {series}, {first}::timestamptz + n * interval '1 minute',
                   100, 101, 99, 100 + n % 7, 1000
            FROM generate_series(0, {last}) AS n
            ON CONFLICT DO NOTHING""",
            LONG.name,
            series=series_id,
            first=START,
            last=_LONG_MINUTES - 1,
        )


if __name__ == "__main__":
    print(json.dumps(measure(json.loads(sys.stdin.read()))))
