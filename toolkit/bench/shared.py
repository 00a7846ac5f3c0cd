"""The cases of what processes share through Redis: found there, and made into bytes and back."""

from __future__ import annotations

import asyncio
import io
import pickle  # a peer's; ours never does
from collections.abc import Callable

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import redis as redis_py
import redis.asyncio as redis_py_async

from toolkit import blocks
from toolkit.aio import AsyncStore
from toolkit.bench.caching import DAY, FEW, OURS, SERIES, UNCACHED, days, frames, in_turn
from toolkit.bench.decorated import (
    AIOCACHE,
    CASHEWS,
    DOGPILE,
    by_aiocache,
    by_cashews,
    by_dogpile,
)
from toolkit.bench.ground import Ground
from toolkit.bench.measure import (
    Contender,
    Result,
    Target,
    Timing,
    by_turns,
    by_turns_awaited,
    compare,
)
from toolkit.store import Store

_GET = "redis-py, GET of as many bytes"
_KEY = "bench:floor"
_CODEC = "block"


def redis(ground: Ground) -> Result:
    """Read days that Redis has and the process has not: it holds fewer than it reads in turn."""
    circle = days(ground)
    day_of = in_turn(circle)
    with (
        Store(ground.sharing(FEW)) as store,
        by_dogpile(frames(ground), ground.redis_url) as dogpile,
        redis_py.Redis.from_url(ground.redis_url) as bare,
    ):
        for day in circle:
            store.read("candles", SERIES, *day)
            dogpile(*day)
        bare.set(_KEY, _block(ground))

        def read(turn: int, cache: bool = True) -> object:
            return store.read("candles", SERIES, *day_of(turn), cache=cache)

        contenders = [
            Contender(OURS, read),
            Contender(UNCACHED, lambda turn: read(turn, cache=False)),
            Contender(f"{DOGPILE}, a pickled DataFrame", lambda turn: dogpile(*day_of(turn))),
            Contender(_GET, lambda turn: bare.get(_KEY)),
        ]
        before = store.stats()["redis_hits"]
        found = by_turns(contenders, ground.sizes.turns)
        _assert_shared(store.stats()["redis_hits"] - before, ground)
    what = "a day of minutes × 6 columns, found in Redis"
    compared = compare(found[OURS], found, {UNCACHED: Target(3.0)})
    return Result("cache_redis", what, DAY, found[OURS], compared, ceiling=0.12)


def redis_async(ground: Ground) -> Result:
    """Read the same under asyncio."""
    circle, load = days(ground), frames(ground)
    day_of = in_turn(circle)

    async def measured() -> dict[str, Timing]:
        async with (
            AsyncStore(ground.sharing(FEW)) as store,
            by_aiocache(load, ground.redis_url) as aiocache,
            by_cashews(load, ground.redis_url) as cashews,
            redis_py_async.Redis.from_url(ground.redis_url) as bare,
        ):
            for day in circle:
                await store.read("candles", SERIES, *day)
                await aiocache(*day)
                await cashews(*day)
            await bare.set(_KEY, _block(ground))

            def read(turn: int, cache: bool = True) -> object:
                return store.read("candles", SERIES, *day_of(turn), cache=cache)

            contenders = [
                Contender(OURS, read),
                Contender(UNCACHED, lambda turn: read(turn, cache=False)),
                Contender(
                    f"{AIOCACHE}, a pickled DataFrame",
                    lambda turn: aiocache(*day_of(turn)),
                ),
                Contender(
                    f"{CASHEWS}, a pickled DataFrame",
                    lambda turn: cashews(*day_of(turn)),
                ),
                Contender(_GET, lambda turn: bare.get(_KEY)),
            ]
            before = store.stats()["redis_hits"]
            found = await by_turns_awaited(contenders, ground.sizes.turns)
            _assert_shared(store.stats()["redis_hits"] - before, ground)
            return found

    found = asyncio.run(measured())
    what = "a day of minutes × 6 columns, found in Redis, asyncio"
    compared = compare(found[OURS], found, {UNCACHED: Target(3.0)})
    return Result("cache_redis_async", what, DAY, found[OURS], compared)


def _assert_shared(hits: float, ground: Ground) -> None:
    """Hold the case to what it says: each read has found its day in Redis."""
    assert hits == ground.sizes.turns + 1, hits


def _block(ground: Ground) -> bytes:
    columns = ground.store.read("candles", SERIES, *days(ground)[0])
    return blocks.encode(columns.instants, {n: columns.raw(n) for n in columns}, {})


def codec(ground: Ground) -> Result:
    """Make a day of minutes into bytes and back."""
    columns = ground.store.read("candles", SERIES, *days(ground)[0])
    ts, values = columns.instants, {n: columns.raw(n) for n in columns}
    frame = pd.DataFrame({"ts": columns.ts, **values})
    ways: dict[str, tuple[Callable[[], bytes], Callable[[bytes], object]]] = {
        _CODEC: (lambda: blocks.encode(ts, values, {}), blocks.decode),
        "pickle of a DataFrame": (lambda: pickle.dumps(frame, 5), pickle.loads),
        "Arrow IPC of a DataFrame": (lambda: _to_ipc(frame), _from_ipc),
        "Parquet of a DataFrame": (lambda: _to_parquet(frame), _from_parquet),
    }

    def contender(name: str) -> Contender:
        encode, decode = ways[name]
        return Contender(name, lambda turn: decode(encode()))

    found = by_turns([contender(name) for name in ways], ground.sizes.turns)
    again = blocks.decode(ways[_CODEC][0]())
    assert np.array_equal(again.ts, ts)
    sizes = ", ".join(f"{name} {len(encode()):,}" for name, (encode, _) in ways.items())
    what = "a day of minutes × 6 columns to bytes and back"
    compared, lines = compare(found[_CODEC], found, {}), (f"cache_codec: bytes: {sizes}",)
    return Result("cache_codec", what, DAY, found[_CODEC], compared, ceiling=0.25, lines=lines)


def _to_ipc(frame: pd.DataFrame) -> bytes:
    sink, table = pa.BufferOutputStream(), pa.Table.from_pandas(frame, preserve_index=False)
    with pa.ipc.new_stream(sink, table.schema) as stream:
        stream.write_table(table)
    data: bytes = sink.getvalue().to_pybytes()
    return data


def _from_ipc(data: bytes) -> object:
    with pa.ipc.open_stream(data) as stream:
        return stream.read_pandas()


def _to_parquet(frame: pd.DataFrame) -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pandas(frame, preserve_index=False), sink)
    return sink.getvalue()


def _from_parquet(data: bytes) -> object:
    return pq.read_table(io.BytesIO(data)).to_pandas()
