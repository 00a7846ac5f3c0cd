"""One-minute bars made from daily ones: a random walk inside each day that keeps its bar."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from zlib import crc32

import numpy as np
import numpy.typing as npt
import pandas as pd

from toolkit.demo.bars import DailyBars, Floats

SEED = 20_130_301
VERSION = "1"
"""Changes when the same days would give other bars: what is stored is then written anew."""

SESSION = 390  # minutes: 09:30 to 16:00 in New York
ZONE = "America/New_York"
_OPENS = np.timedelta64(570, "m")
_NOISE = 1.2  # how far the walk wants to go, in ranges of the day; the day's bar bends it back
_WICK = 0.04  # a minute's wick, in ranges of the day


@dataclass(frozen=True, slots=True)
class Chunk:
    """The days of one share in one year: what one frame holds."""

    daily: DailyBars
    year: int

    @property
    def series(self) -> str:
        return series_name(self.daily.ticker)

    @property
    def rows(self) -> int:
        return len(self.daily) * SESSION

    @property
    def last(self) -> np.datetime64:
        """The time of its last bar."""
        opened: np.datetime64 = session_starts(self.daily.days[-1:])[0]
        return opened + np.timedelta64(SESSION - 1, "m")


def series_name(ticker: str) -> str:
    """Return the name of a share's minute series; its daily one is called as the share is."""
    return f"{ticker}/1m"


def chunks(daily: Mapping[str, DailyBars], since: str, until: str = "2100") -> list[Chunk]:
    """Cut the days in ``[since, until)`` into chunks of a share and a year, oldest first."""
    found = []
    for bars in daily.values():
        chosen = bars.between(since, until)
        for year in np.unique(chosen.days.astype("M8[Y]")):
            number = int(str(year))
            found.append(Chunk(chosen.between(str(year), str(number + 1)), number))
    return found


def frames(parts: list[Chunk], seed: int = SEED) -> Iterator[pd.DataFrame]:
    """Yield the minute bars of each chunk, up to 99,000 rows; one is in memory at a time."""
    for part in parts:
        yield minute_bars(part, seed)


def minute_bars(chunk: Chunk, seed: int = SEED) -> pd.DataFrame:
    """Return the minute bars of a chunk's days; the same for the same seed, share and year.

    Each day opens, peaks, bottoms, closes and trades exactly as its daily bar says. Prices are
    in cents, volumes whole; about 0.3 µs a bar.
    """
    daily = chunk.daily
    generator = np.random.default_rng([seed, crc32(daily.ticker.encode()), chunk.year])
    path = _path(daily, generator)
    first, last = path[:, :-1], path[:, 1:]
    high, low = _wicks(daily, first, last, generator)
    minutes = np.arange(SESSION).astype("m8[m]")
    ts = session_starts(daily.days)[:, None] + minutes
    return pd.DataFrame(
        {
            "series": pd.Categorical([chunk.series]).repeat(chunk.rows),
            "ts": pd.DatetimeIndex(ts.ravel(), tz="UTC"),
            "open": first.ravel(),
            "high": high.ravel(),
            "low": low.ravel(),
            "close": last.ravel(),
            "volume": _volumes(daily, generator).ravel(),
        },
        copy=False,
    )


def session_starts(days: npt.NDArray[np.datetime64]) -> npt.NDArray[np.datetime64]:
    """Return when each day's session opens, datetime64[us] in UTC.

    >>> session_starts(np.array(["2012-03-09", "2012-03-12"], "M8[D]")).tolist()[1].hour
    13
    """
    local = pd.DatetimeIndex(days.astype("M8[us]") + _OPENS).tz_localize(ZONE)
    utc: npt.NDArray[np.datetime64] = local.tz_convert("UTC").tz_localize(None).to_numpy()
    return utc.astype("M8[us]")


def _path(daily: DailyBars, generator: np.random.Generator) -> Floats:
    """Return the price at each minute's edge, (days, 391): from open to close inside the range.

    A Brownian bridge; where it leaves the day's body it is scaled so that it just reaches the
    day's high and low.
    """
    time = np.linspace(0.0, 1.0, SESSION + 1)
    calm = 1.0 + 1.5 * (2.0 * time[1:] - 1.0) ** 2  # busier at the open and at the close
    steps = generator.standard_normal((len(daily), SESSION)) * np.sqrt(calm / calm.sum())
    walk = np.concatenate([np.zeros((len(daily), 1)), np.cumsum(steps, axis=1)], axis=1)
    bridge = walk - walk[:, -1:] * time
    opening, closing = daily.open[:, None], daily.close[:, None]
    high, low = daily.high[:, None], daily.low[:, None]
    path = opening + (closing - opening) * time + _NOISE * (high - low) * bridge
    body_high, body_low = np.maximum(opening, closing), np.minimum(opening, closing)
    path = body_high + _scaled(path - body_high, high - body_high)
    path = body_low - _scaled(body_low - path, body_low - low)
    path = np.clip(np.round(path, 2), low, high)
    path[:, 0], path[:, -1] = daily.open, daily.close
    return path


def _scaled(excess: Floats, room: Floats) -> Floats:
    """Scale the positive part of each row so that its maximum is ``room``; leave the rest."""
    most = excess.max(axis=1, keepdims=True)
    factor = np.divide(room, most, out=np.zeros_like(most), where=most > 0)
    return np.where(excess > 0, excess * factor, excess)


def _wicks(
    daily: DailyBars, first: Floats, last: Floats, generator: np.random.Generator
) -> tuple[Floats, Floats]:
    top, bottom = np.maximum(first, last), np.minimum(first, last)
    reach = _WICK * (daily.high - daily.low)[:, None]
    up, down = generator.exponential(1.0, (2, *first.shape)) * reach / 4
    high = np.minimum(np.maximum(np.round(top + up, 2), top), daily.high[:, None])
    low = np.maximum(np.minimum(np.round(bottom - down, 2), bottom), daily.low[:, None])
    days = np.arange(len(daily))
    high[days, np.argmax(top, axis=1)] = daily.high
    low[days, np.argmin(bottom, axis=1)] = daily.low
    return high, low


def _volumes(daily: DailyBars, generator: np.random.Generator) -> Floats:
    """Return whole volumes, (days, 390), that add up to each day's."""
    time = (np.arange(SESSION) + 0.5) / SESSION
    usual = 0.5 + 2.0 * (2.0 * time - 1.0) ** 2
    weights = usual * generator.lognormal(0.0, 0.6, (len(daily), SESSION))
    traded = np.cumsum(weights, axis=1)
    traded = np.floor(traded / traded[:, -1:] * daily.volume[:, None])
    traded[:, -1] = daily.volume
    return np.diff(traded, axis=1, prepend=0.0)
