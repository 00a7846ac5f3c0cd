"""The cases of a Redis that is gone: reads then cost what they cost without one."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager

from toolkit.bench.caching import DAY, FEW, OURS, SERIES, days, in_turn
from toolkit.bench.ground import Ground
from toolkit.bench.measure import Contender, Result, Target, by_turns, compare
from toolkit.store import Store

_WITHOUT = "without Redis"


def refused_hit(ground: Ground) -> Result:
    """Read what the process holds while Redis refuses."""
    return _measured(ground, "cache_refused_hit", is_hung=False, is_held=True)


def refused_miss(ground: Ground) -> Result:
    """Read what nobody holds while Redis refuses."""
    return _measured(ground, "cache_refused_miss", is_hung=False, is_held=False)


def hung_hit(ground: Ground) -> Result:
    """Read what the process holds while Redis says nothing."""
    return _measured(ground, "cache_hung_hit", is_hung=True, is_held=True)


def hung_miss(ground: Ground) -> Result:
    """Read what nobody holds while Redis says nothing."""
    return _measured(ground, "cache_hung_miss", is_hung=True, is_held=False)


@contextmanager
def lost_redis(*, is_hung: bool) -> Iterator[str]:
    """Yield the URL of a port that takes connections and never answers, or takes none."""
    with socket.socket() as port:
        port.bind(("127.0.0.1", 0))
        if is_hung:
            port.listen()
        yield f"redis://127.0.0.1:{port.getsockname()[1]}/0"


def _measured(ground: Ground, case: str, *, is_hung: bool, is_held: bool) -> Result:
    sizes, circle = ground.sizes, days(ground)[:1] if is_held else days(ground)
    day_of = in_turn(circle)
    with (
        lost_redis(is_hung=is_hung) as url,
        Store(ground.remembering(FEW, url)) as store,
        Store(ground.remembering(FEW)) as other,
    ):
        first, first_without = _first(store, circle[0]), _first(other, circle[0])
        for _ in range(2):  # the short way is found by the second read, and taken by the third
            store.read("candles", SERIES, *circle[0])
            other.read("candles", SERIES, *circle[0])
        assert store.stats()["redis_is_out"] == 1

        def contender(name: str, store: Store) -> Contender:
            return Contender(name, lambda turn: store.read("candles", SERIES, *day_of(turn)))

        contenders = [contender(OURS, store), contender(_WITHOUT, other)]
        found = by_turns(contenders, sizes.cached_turns if is_held else sizes.turns)
    state = "says nothing" if is_hung else "refuses"
    held = "held in the process" if is_held else "held nowhere"
    what = f"a day of minutes, {held}, while Redis {state}"
    line = f"{case}: the first read took {first:,.1f} ms, {_WITHOUT} {first_without:,.1f} ms"
    compared = compare(found[OURS], found, {_WITHOUT: Target(1.05, is_cost=True)})
    return Result(case, what, DAY, found[OURS], compared, lines=(line,))


def _first(store: Store, day: tuple[str, str]) -> float:
    """Return the ms of the first read that asks Redis, by a store that has its connections."""
    store.read("candles", SERIES, *day, cache=False)
    started = time.perf_counter()
    store.read("candles", SERIES, *day)
    return (time.perf_counter() - started) * 1000
