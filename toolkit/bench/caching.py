"""The cases of what a store remembers in its own process."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

import numpy as np

from toolkit.aio import AsyncStore
from toolkit.bench.decorated import (
    AIOCACHE,
    CASHEWS,
    DOGPILE,
    Load,
    by_aiocache,
    by_cashews,
    by_dogpile,
)
from toolkit.bench.ground import Ground, at
from toolkit.bench.measure import (
    Contender,
    Result,
    Target,
    Timing,
    by_turns,
    by_turns_awaited,
    compare,
)
from toolkit.columns import Columns
from toolkit.store import Store
from toolkit.strategy import Plan

OURS = "store.read"
SERIES = "B0"
DAY = 1_440
UNCACHED = "store.read, not cached"
SHARING = "store.read, the fourth found in Redis"
FEW = 1  # MiB, which hold 13 days of minutes: what is read in a circle of more is never there
_MIXED = 100  # reads of a turn
_HOT = 3  # days that are read again and again
_WARM = 3  # reads: one fetches, one finds out that a short way leads there, one takes it


def days(ground: Ground) -> list[tuple[str, str]]:
    """Return the first days, as many as are read in a circle."""
    return [(at(DAY * d), at(DAY * (d + 1))) for d in range(ground.sizes.cached_days)]


def in_turn(circle: Sequence[tuple[str, str]]) -> Callable[[int], tuple[str, str]]:
    """Return the day of each turn; the turn that does not count, -1, has the first."""
    return lambda turn: circle[(turn + 1) % len(circle)]


def frames(ground: Ground) -> Load:
    """Return what peers remember: the DataFrame of a range of points, by pandas.read_sql."""
    questions = ground.questions("candles", SERIES)
    return lambda start, end: ground.peers.frame(questions.points(start, end))


def source(columns: Columns) -> dict[str, int]:
    """Return where the rows of an answer came from."""
    assert isinstance(columns.plan, Plan)
    return dict(columns.plan.sources)


def memory(ground: Ground) -> Result:
    """Read a day of minutes that the process holds."""
    day = days(ground)[0]
    with Store(ground.remembering()) as store, by_dogpile(frames(ground)) as dogpile:
        for _ in range(_WARM):
            store.read("candles", SERIES, *day)
        contenders = [
            Contender(OURS, lambda turn: store.read("candles", SERIES, *day)),
            Contender(f"{DOGPILE}, a DataFrame", lambda turn: dogpile(*day)),
        ]
        found = by_turns(contenders, ground.sizes.cached_turns)
        assert source(store.read("candles", SERIES, *day)) == {"memory": DAY}
    what = "a day of minutes × 6 columns, held in the process"
    compared = compare(found[OURS], found, {})
    return Result("cache_memory", what, DAY, found[OURS], compared, ceiling=0.015)


def memory_async(ground: Ground) -> Result:
    """Read the same under asyncio."""
    day, load = days(ground)[0], frames(ground)

    async def measured() -> dict[str, Timing]:
        async with (
            AsyncStore(ground.remembering()) as store,
            by_aiocache(load) as aiocache,
            by_cashews(load) as cashews,
        ):
            for _ in range(_WARM):
                await store.read("candles", SERIES, *day)
            contenders = [
                Contender(OURS, lambda turn: store.read("candles", SERIES, *day)),
                Contender(f"{AIOCACHE}, a DataFrame", lambda turn: aiocache(*day)),
                Contender(f"{CASHEWS}, a DataFrame", lambda turn: cashews(*day)),
            ]
            found = await by_turns_awaited(contenders, ground.sizes.cached_turns)
            assert source(await store.read("candles", SERIES, *day)) == {"memory": DAY}
            return found

    found = asyncio.run(measured())
    what = "a day of minutes × 6 columns, held in the process, asyncio"
    compared = compare(found[OURS], found, {})
    return Result("cache_memory_async", what, DAY, found[OURS], compared, ceiling=0.02)


def sliding(ground: Ground) -> Result:
    """Read hourly bars of some days, each time from one hour later on: closed time, no cut ends."""
    sizes = ground.sizes
    width = sizes.cached_days * DAY
    questions = ground.questions("candles", SERIES)

    def window(turn: int) -> tuple[str, str]:
        return at(60 * (turn + 1)), at(60 * (turn + 1) + width)

    def read(store: Store, turn: int) -> Columns:
        return store.read("candles", SERIES, *window(turn), step="1h")

    hours = sizes.cached_days * 24
    with (
        Store(ground.remembering()) as store,
        by_dogpile(lambda start, end: ground.peers.frame(questions.hours(start, end))) as dogpile,
    ):
        contenders = [
            Contender(OURS, lambda turn: read(store, turn)),
            Contender(UNCACHED, lambda turn: read(ground.store, turn)),
            Contender(
                f"{DOGPILE}, pandas.read_sql over the points",
                lambda turn: dogpile(*window(turn)),
                every=8,
            ),
        ]
        found = by_turns(contenders, sizes.turns)
        one, other = (read(s, sizes.turns - 1) for s in (store, ground.store))
        assert source(one) == {"memory": len(one)}
        assert len(one) == hours
        assert all(np.allclose(one.raw(name), other.raw(name)) for name in other)
    what = f"{hours:,} hourly bars, each time an hour later"
    compared = compare(found[OURS], found, {UNCACHED: Target(5.0)})
    return Result("cache_sliding", what, hours, found[OURS], compared)


def mixed(ground: Ground) -> Result:
    """Read days of which three in four are held, the fourth is with the database."""
    circle = days(ground)
    hot, cold = circle[:_HOT], circle[_HOT:]

    def day(number: int) -> tuple[str, str]:
        part = hot if number % 4 else cold
        return part[number // 4 % len(part)]

    def numbers(turn: int) -> range:
        return range((turn + 1) * _MIXED, (turn + 2) * _MIXED)

    def read(store: Store, turn: int) -> None:
        for number in numbers(turn):
            store.read("candles", SERIES, *day(number))

    with (
        Store(ground.remembering(FEW)) as store,
        Store(ground.sharing(FEW)) as sharing,
        by_dogpile(frames(ground)) as dogpile,
    ):

        def read_dogpile(turn: int) -> None:
            for number in numbers(turn):
                if number % 4 == 0:
                    dogpile.invalidate(*day(number))
                dogpile(*day(number))

        contenders = [
            Contender(OURS, lambda turn: read(store, turn), scale=1 / _MIXED),
            Contender(SHARING, lambda turn: read(sharing, turn), scale=1 / _MIXED),
            Contender(UNCACHED, lambda turn: read(ground.store, turn), scale=1 / _MIXED),
            Contender(f"{DOGPILE}, pandas.read_sql", read_dogpile, every=4, scale=1 / _MIXED),
        ]
        for turn in range(-3, 0):
            read(store, turn)
            read(sharing, turn)
        before = store.stats()["cache_puts"]
        turns = ground.sizes.large_turns
        found = by_turns(contenders, turns)
        fetched = store.stats()["cache_puts"] - before
        share = 1 - fetched / ((turns + 1) * _MIXED)
        assert 0.74 < share < 0.76, share
    ours = found[OURS]
    what = f"a day of minutes, mean of {_MIXED} reads of which {share:.0%} are held"
    rates = ", ".join(f"{1000 / found[n].p50:,.0f} by {n}" for n in (OURS, SHARING, UNCACHED))
    lines = (f"cache_mixed: reads/s of one process: {rates}",)
    compared = compare(ours, found, {})
    return Result("cache_mixed", what, DAY, ours, compared, ceiling=0.1, lines=lines)
