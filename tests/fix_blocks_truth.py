"""Series of which every right answer is known at every moment, and what is wrong with one.

``still`` never changes; ``tide`` changes as a whole; of ``ebb`` a stretch comes and goes; ``grow``
gets batches, each between the points of all others.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from typing import Any

import numpy as np
import numpy.typing as npt

MINUTE = 60_000_000
DAY = 1440 * MINUTE
T0 = int(datetime(2024, 2, 19, tzinfo=UTC).timestamp()) * 1_000_000
BORDER = T0 + 11 * DAY  # where a partition ends
WEEK = 7 * DAY
SPAN = (T0, T0 + 3 * WEEK)
STEPS = {"15m": 15 * MINUTE, "1h": 60 * MINUTE, "1d": DAY}
STRATEGIES = ("auto", "direct", "aggregated", "downsampled")
ALL = ("open", "high", "low", "close", "volume")
SERIES = ("still", "tide", "ebb", "grow")

Instants = npt.NDArray[np.int64]
Look = Callable[[Any, random.Random, dict[str, Any]], Any]
"""Reads one series of a store in one way and returns the answer; raises Wrong."""


class Wrong(Exception):
    """An answer that was right at no moment."""


STILL: Instants = T0 + np.arange(4_000) * 7 * MINUTE  # 19 days in two partitions
TIDE: Instants = T0 + 9 * DAY + np.arange(600) * 11 * MINUTE  # across a partition's border
EBB: Instants = T0 + np.arange(1_500) * 13 * MINUTE
GAPS = ((T0 + 2 * DAY, T0 + 3 * DAY), (BORDER - DAY // 2, BORDER + DAY // 3), (T0, BORDER))
EACH, BATCHES = 40, 600
GROW = T0 + np.arange(EACH) * 600 * MINUTE  # where batches have a point each


def moment(us: int) -> datetime:
    return datetime.fromtimestamp(us // 1_000_000, UTC)


def frame(ts: Instants, volume: Any, columns: Iterable[str] = ALL) -> dict[str, Any]:
    """Return points whose prices tell their time, in some columns."""
    price = (ts - T0) // MINUTE * 1.0
    values = {"open": price, "high": price + 2, "low": price - 2, "close": price + 1}
    values["volume"] = np.broadcast_to(np.asarray(volume, float), len(ts)).copy()
    return {"ts": ts.astype("M8[us]"), **{c: values[c] for c in columns}}


def begin(store: Any) -> None:
    """Write the first points of all series."""
    store.write("candles", frame(STILL, np.arange(len(STILL))), series="still")
    store.write("candles", frame(TIDE, 1), series="tide")
    store.write("candles", frame(EBB, 1), series="ebb")
    for number in range(3):  # so that it is never coarser than a step
        store.write("candles", batch(number), series="grow")


def batch(number: int) -> dict[str, Any]:
    """Return the points that are stored together as the so manyth."""
    return frame(GROW + (1 + number * 7) % 600 * MINUTE, number)


NUMBER_AT = {(1 + number * 7) % 600: number for number in range(BATCHES)}


# -- what an answer may be ----------------------------------------------------------------------


def points(cols: Any, ts: Instants, volume: Any) -> None:
    """Check that these are the points of a frame, each once, in order, to the last value."""
    found = cols.instants
    if len(found) != len(ts) or (found != ts).any():
        raise Wrong(f"{len(found)} points instead of {len(ts)}: {_apart(found, ts)}")
    wanted = frame(ts, volume)
    for name in cols:
        if (bad := cols[name] != wanted[name]).any():
            at = int(np.argmax(bad))
            raise Wrong(
                f"{name} at {moment(ts[at])}: {cols[name][at]} instead of {wanted[name][at]}"
            )


def bars(cols: Any, ts: Instants, volume: Any, width: int) -> None:
    """Check the bars of a frame: sums are of whole numbers, so exact."""
    starts, first = np.unique(ts // width * width, return_index=True)
    if len(cols) != len(starts) or (cols.instants != starts).any():
        raise Wrong(f"{len(cols)} bars instead of {len(starts)}: {_apart(cols.instants, starts)}")
    wanted = frame(ts, volume)
    last = np.append(first[1:], len(ts)) - 1
    expected = {
        "open": wanted["open"][first],
        "high": np.maximum.reduceat(wanted["high"], first),
        "low": np.minimum.reduceat(wanted["low"], first),
        "close": wanted["close"][last],
        "volume": np.add.reduceat(wanted["volume"], first),
    }
    for name, values in expected.items():
        if (bad := cols[name] != values).any():
            at = int(np.argmax(bad))
            raise Wrong(f"{name} of {moment(starts[at])}: {cols[name][at]}, not {values[at]}")


def _apart(found: Instants, wanted: Instants) -> str:
    def some(ts: Instants) -> list[str]:
        return [str(moment(int(t))) for t in ts[:3]]

    values, counts = np.unique(found, return_counts=True)
    return (
        f"missing {some(np.setdiff1d(wanted, found))}, not expected "
        f"{some(np.setdiff1d(found, wanted))}, twice {some(values[counts > 1])}"
    )


def states_of(series: str, found: Any) -> Iterator[tuple[Instants, Any]]:
    """Yield what a series may be, given what an answer says of how far it has come."""
    if series == "still":
        yield STILL, np.arange(len(STILL))
    elif series == "tide":
        yield TIDE, found
    elif series == "ebb":
        yield EBB, 1
        for low, high in GAPS:
            yield EBB[(low > EBB) | (high <= EBB)], 1
    else:
        made = [batch(n) for n in range(int(found))]
        ts = np.concatenate([f["ts"].astype(np.int64) for f in made])
        order = np.argsort(ts)
        yield ts[order], np.concatenate([f["volume"] for f in made])[order]


def fits(series: str, check: Callable[[Instants, Any], None], found: Any) -> None:
    """Raise Wrong unless an answer is that of one of the states."""
    problems = []
    for ts, volume in states_of(series, found):
        try:
            check(ts, volume)
        except Wrong as error:
            problems.append(str(error))
        else:
            return
    raise Wrong(f"{series}: " + "; ".join(problems))


# -- looking ------------------------------------------------------------------------------------


def far(series: str, cols: Any, past: dict[str, Any], is_strong: bool) -> Any:
    """Return how far a series has come, which never goes back for who asks for the newest."""
    if series == "tide":
        found = float(cols["volume"][0]) if len(cols) else 0.0
    elif series == "grow":
        found = len(cols) / EACH
        if found % 1:
            raise Wrong(f"grow: {len(cols)} points are no batches of {EACH}")
    else:
        return None
    if is_strong and found < past.get(series, 0.0):
        raise Wrong(f"{series} went back from {past[series]} to {found}")
    if is_strong:
        past[series] = found
    return found


def look_at_points(store: Any, series: str, past: dict[str, Any], **how: Any) -> Any:
    cols = store.read("candles", series, *map(moment, SPAN), **how)
    found = far(series, cols, past, how["freshness"] == "strong")
    try:
        fits(series, lambda ts, volume: points(cols, ts, volume), found)
    except Wrong as error:
        raise Wrong(f"points, {how}, of {cols.plan.sources}: {error}") from None
    return cols


def look_at_bars(store: Any, series: str, step: str, **how: Any) -> Any:
    width = STEPS[step]
    cols = store.read("candles", series, *map(moment, SPAN), step=step, **how)
    if series == "tide":  # the first bar says which
        first = int(np.searchsorted(TIDE, TIDE[0] // width * width + width))
        found: Any = float(cols["volume"][0]) / first if len(cols) else 0.0
    elif series == "grow":
        total = cols["volume"].sum() / EACH  # 0 + 1 + … of the batches
        found = round((1 + math.sqrt(1 + 8 * total)) / 2)
        if total != found * (found - 1) / 2:
            raise Wrong(f"grow: bars of {total * EACH} are of no batches of {EACH} points")
    else:
        found = None
    try:
        fits(series, lambda ts, volume: bars(cols, ts, volume, width), found)
    except Wrong as error:
        raise Wrong(
            f"{step}, {how}, {cols.plan.strategy} of {cols.plan.sources}: {error}"
        ) from None
    return cols


def look_at_newest(store: Any, series: str, n: int) -> Any:
    cols = store.latest("candles", series, n=n)
    if series == "grow":
        if len(cols) != n or (np.diff(cols.instants) <= 0).any():
            raise Wrong(f"grow: the newest {n} are {cols.instants}")
        return cols
    found = float(cols["volume"][0]) if series == "tide" and len(cols) else None
    fits(
        series,
        lambda ts, volume: points(cols, ts[-n:], np.broadcast_to(volume, len(ts))[-n:]),
        found,
    )
    return cols


def look_at_stream(store: Any, series: str, rows: int, pause: float = 0.0) -> None:
    """Read piece by piece, slowly perhaps: all of them are of one snapshot."""
    found = []
    for piece in store.stream("candles", series, *map(moment, SPAN), rows=rows):
        found.append((piece.instants, piece["volume"]))
        time.sleep(pause)
    ts = np.concatenate([f[0] for f in found])
    volume = np.concatenate([f[1] for f in found])

    def check(wanted: Instants, volumes: Any) -> None:
        if len(ts) != len(wanted) or (ts != wanted).any():
            raise Wrong(f"{len(ts)} streamed instead of {len(wanted)}: {_apart(ts, wanted)}")
        if (volume != volumes).any():
            raise Wrong(f"of {len(ts)} streamed {np.sum(volume != volumes)} are of another time")

    fits(series, check, volume[0] if series == "tide" else len(ts) / EACH)


def look_at_part(store: Any, series: str, chance: random.Random, **how: Any) -> Any:
    """Read a range of what never changes, from either end, with and without a limit."""
    low, high = sorted(chance.sample(range(len(STILL)), 2))
    limit = chance.choice([None, 1, 30, 700])
    is_last = chance.random() < 0.5
    span = moment(int(STILL[low])), moment(int(STILL[high]))
    cols = store.read("candles", series, *span, limit=limit, descending=is_last, **how)
    places = np.arange(low, high)
    places = (places[::-1] if is_last else places)[:limit]
    points(cols, STILL[places], places)
    return cols


def look_at_each_point(store: Any, series: str, **how: Any) -> Any:
    """What is held may be of other moments than what is fetched: each point is right by itself."""
    cols = store.read("candles", series, *map(moment, SPAN), **how)
    ts = cols.instants
    number = (ts - T0) // MINUTE % 600
    if series == "tide":
        points(cols, TIDE, cols["volume"])
    elif series == "ebb":
        points(cols, np.intersect1d(EBB, ts), 1)
        stays = [t for t in EBB.tolist() if not any(low <= t < high for low, high in GAPS)]
        if not np.isin(stays, ts).all():
            raise Wrong(
                f"ebb: of {len(stays)} points that stay {np.isin(stays, ts).sum()} are there"
            )
    else:
        points(cols, np.unique(ts), [NUMBER_AT[n] for n in number.tolist()])
    return cols


def look(store: Any, chance: random.Random, past: dict[str, Any], *, remembers: bool) -> Any:
    """Read one series in one way; return the answer, None of a stream; raises Wrong."""
    series = chance.choice(SERIES)
    how = {"freshness": chance.choice(["strong", "strong", None])}
    kind = chance.random()
    if remembers and series != "still":
        return look_at_each_point(store, series, **how)
    if kind < 0.35:
        return look_at_points(store, series, past, **how)
    if kind < 0.7:
        how["strategy"] = chance.choice(STRATEGIES)
        return look_at_bars(store, series, chance.choice([*STEPS]), **how)
    if kind < 0.8:
        return look_at_newest(store, series, chance.choice([1, 5, 50]))
    if kind < 0.87:
        pause = chance.choice([0.0, 0.01])
        return look_at_stream(store, series, chance.choice([90, 1_000]), pause)
    return look_at_part(store, "still", chance, **how)


def look_at_all(store: Any) -> int:
    """Look at every series in every way; return how often; raises Wrong."""
    count = 0
    for series in SERIES:
        look_at_points(store, series, {}, freshness="strong")
        look_at_newest(store, series, 9)
        for step in STEPS:
            for strategy in STRATEGIES:
                look_at_bars(store, series, step, freshness="strong", strategy=strategy)
        look_at_stream(store, series, 300)
        count += 3 + len(STEPS) * len(STRATEGIES)
    return count
