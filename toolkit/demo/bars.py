"""Real daily bars: five American shares, 2000 to 2013, from the package ``bokeh_sampledata``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from toolkit.errors import MissingExtra

Floats = npt.NDArray[np.float64]

VENUES: Mapping[str, str] = {
    "AAPL": "NASDAQ",
    "FB": "NASDAQ",
    "GOOG": "NASDAQ",
    "IBM": "NYSE",
    "MSFT": "NASDAQ",
}


@dataclass(frozen=True, slots=True, eq=False)
class DailyBars:
    """The daily bars of one share, oldest first; ``days`` are dates on the exchange's calendar."""

    ticker: str
    days: npt.NDArray[np.datetime64]
    open: Floats
    high: Floats
    low: Floats
    close: Floats
    volume: Floats

    def __len__(self) -> int:
        return len(self.days)

    def between(self, start: str, end: str) -> DailyBars:
        """Return the bars of the days in ``[start, end)``."""
        inside = (self.days >= np.datetime64(start)) & (self.days < np.datetime64(end))
        return DailyBars(
            self.ticker,
            self.days[inside],
            self.open[inside],
            self.high[inside],
            self.low[inside],
            self.close[inside],
            self.volume[inside],
        )

    def to_frame(self) -> pd.DataFrame:
        """Return a frame as :meth:`toolkit.Store.write` takes it: a bar is stamped 00:00 UTC."""
        return pd.DataFrame(
            {
                "series": pd.Categorical([self.ticker]).repeat(len(self)),
                "ts": pd.DatetimeIndex(self.days.astype("M8[us]"), tz="UTC"),
                "open": self.open,
                "high": self.high,
                "low": self.low,
                "close": self.close,
                "volume": self.volume,
            }
        )


def read_daily() -> dict[str, DailyBars]:
    """Return the daily bars of each share by its ticker.

    Raises MissingExtra where the package is not installed. It is found, not imported: what it
    does on import (it warns, and needs its plotting library) is none of our business.
    """
    spec = find_spec("bokeh_sampledata")
    if spec is None or not spec.submodule_search_locations:
        raise MissingExtra("bokeh_sampledata", "local", "the demo's daily bars")
    path = Path(next(iter(spec.submodule_search_locations))) / "_data" / "stocks.csv.gz"
    table = pd.read_csv(path).sort_values(["Ticker", "Date"])
    return {str(ticker): _of(str(ticker), rows) for ticker, rows in table.groupby("Ticker")}


def _of(ticker: str, rows: pd.DataFrame) -> DailyBars:
    def column(name: str) -> Floats:
        return rows[name].to_numpy(dtype=np.float64)

    return DailyBars(
        ticker,
        rows["Date"].to_numpy().astype("M8[D]"),
        column("Open"),
        column("High"),
        column("Low"),
        column("Close"),
        column("Volume"),
    )
