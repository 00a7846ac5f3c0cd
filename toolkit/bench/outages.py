"""The cases of a Redis that is gone: reads then cost what they cost without one."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass
from inspect import isawaitable

from toolkit.aio import AsyncStore
from toolkit.bench.caching import DAY, FEW, OURS, SERIES, days, in_turn
from toolkit.bench.ground import Ground
from toolkit.bench.measure import Contender, Result, Target, by_turns, by_turns_awaited, compare
from toolkit.config import Settings
from toolkit.store import Store

_WITHOUT = "without Redis"
_MORE = 5  # times the turns of other reads: 5 % are to be told from noise
_Store = Store | AsyncStore


@contextmanager
def lost_redis(*, is_hung: bool) -> Iterator[str]:
    """Yield the URL of a port that takes connections and never answers, or takes none."""
    with socket.socket() as port:
        port.bind(("127.0.0.1", 0))
        if is_hung:
            port.listen()
        yield f"redis://127.0.0.1:{port.getsockname()[1]}/0"


@dataclass(frozen=True, slots=True)
class Outage:
    """A case: how Redis is lost, whether the process holds what is read, and the colour."""

    is_hung: bool
    is_held: bool
    is_async: bool

    @property
    def name(self) -> str:
        """The case's name."""
        how, what = "hung" if self.is_hung else "refused", "hit" if self.is_held else "miss"
        return f"cache_{how}_{what}{'_async' if self.is_async else ''}"

    def __call__(self, ground: Ground) -> Result:
        """Read a day, or a circle of days, by a store that has lost Redis and one without."""
        return asyncio.run(self._measured(ground))

    async def _measured(self, ground: Ground) -> Result:
        sizes, circle = ground.sizes, days(ground)[:1] if self.is_held else days(ground)
        turns = sizes.cached_turns if self.is_held else _MORE * sizes.turns
        day_of = in_turn(circle)
        async with AsyncExitStack() as stack:
            url = stack.enter_context(lost_redis(is_hung=self.is_hung))
            store = await self._opened(stack, ground.remembering(FEW, url))
            other = await self._opened(stack, ground.remembering(FEW))
            first, first_without = await _first(store, circle[0]), await _first(other, circle[0])
            for one in (store, other):
                for _ in range(2):  # the short way is found by the second read, taken by the third
                    await _read(one, circle[0])
            assert store.stats()["redis_is_out"] == 1

            def act(store: _Store) -> Callable[[int], object]:
                return lambda turn: store.read("candles", SERIES, *day_of(turn))

            contenders = [Contender(OURS, act(store)), Contender(_WITHOUT, act(other))]
            if self.is_async:
                found = await by_turns_awaited(contenders, turns)
            else:
                found = by_turns(contenders, turns)
        how = "says nothing" if self.is_hung else "refuses"
        held = "held in the process" if self.is_held else "held nowhere"
        colour = ", asyncio" if self.is_async else ""
        what = f"a day of minutes, {held}, while Redis {how}{colour}"
        line = f"{self.name}: the first read took {first:,.1f} ms, {_WITHOUT} {first_without:,.1f}"
        compared = compare(found[OURS], found, {_WITHOUT: Target(1.05, is_cost=True)})
        return Result(self.name, what, DAY, found[OURS], compared, lines=(line,))

    async def _opened(self, stack: AsyncExitStack, settings: Settings) -> _Store:
        if self.is_async:
            return await stack.enter_async_context(AsyncStore(settings))
        return stack.enter_context(Store(settings))


OUTAGES = tuple(
    Outage(is_hung, is_held, is_async)
    for is_async in (False, True)
    for is_hung in (False, True)
    for is_held in (True, False)
)


async def _read(store: _Store, day: tuple[str, str], *, cache: bool = True) -> None:
    answer = store.read("candles", SERIES, *day, cache=cache)
    if isawaitable(answer):
        await answer


async def _first(store: _Store, day: tuple[str, str]) -> float:
    """Return the ms of the first read that asks Redis, by a store that has its connections."""
    await _read(store, day, cache=False)
    started = time.perf_counter()
    await _read(store, day)
    return (time.perf_counter() - started) * 1000
