"""A candlestick chart as PNG, drawn without a screen."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np

from toolkit.columns import Columns
from toolkit.errors import MissingExtra

_UP, _DOWN = "#2a9d6f", "#d1495b"
_WIDTH = 0.7  # of a step


def check_installed() -> None:
    """Raise MissingExtra where matplotlib is not installed."""
    if find_spec("matplotlib") is None:
        raise MissingExtra("matplotlib", "local", "the demo's chart")


def save_candles(columns: Columns, title: str, path: Path) -> None:
    """Draw the bars of one series, with their volume below, into a PNG file.

    ``columns`` has open, high, low, close and volume. Bars stand side by side: nights and
    weekends take no room.
    """
    check_installed()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    opening, high, low, close, volume = (
        columns.raw(n).astype(np.float64) for n in ("open", "high", "low", "close", "volume")
    )
    place = np.arange(len(columns))
    colors = np.where(close >= opening, _UP, _DOWN).tolist()
    figure = Figure(figsize=(13, 7), dpi=110, layout="constrained")
    prices, volumes = figure.subplots(2, 1, sharex=True, height_ratios=[4, 1])
    prices.vlines(place, low, high, colors=colors, linewidth=0.8)
    bottom, top = np.minimum(opening, close), np.maximum(opening, close)
    body = np.maximum(top - bottom, (np.max(high) - np.min(low)) / 800)  # a doji is a line
    prices.bar(place, body, _WIDTH, bottom=bottom, color=colors)
    volumes.bar(place, volume / 1e6, _WIDTH, color=colors)
    months = columns.ts.astype("M8[M]")
    starts = np.flatnonzero(np.append(True, months[1:] != months[:-1]))
    volumes.set_xticks(starts, [str(m) for m in months[starts]], rotation=30, ha="right")
    volumes.margins(x=0.01)
    volumes.set_ylabel("volume, millions")
    prices.set_title(title, loc="left")
    prices.set_ylabel("price")
    for axes in (prices, volumes):
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    FigureCanvasAgg(figure).print_png(str(path))  # type: ignore[no-untyped-call]  # no types
