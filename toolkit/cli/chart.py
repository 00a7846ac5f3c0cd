"""Draws an answer: candles where it has open, high, low and close, else lines."""

from __future__ import annotations

import warnings
from importlib import import_module
from typing import IO, Any

import numpy as np

from toolkit.columns import Columns
from toolkit.errors import MissingExtra, QueryError

_CANDLE = ("open", "high", "low", "close")
_MAX_SERIES = 8
_MAX_CANDLES = 1_500  # past that a candle is thinner than a pixel: a line says more
_UP, _DOWN = "#26a69a", "#ef5350"


def write_png(columns: Columns, file: IO[bytes]) -> None:
    """Write a PNG with one panel a series, at most eight."""
    try:
        matplotlib = import_module("matplotlib")
    except ImportError:
        raise MissingExtra("matplotlib", "local", "--png") from None
    if not len(columns):
        raise QueryError("--png: the answer has no rows to draw")
    matplotlib.use("Agg")
    plt = import_module("matplotlib.pyplot")
    codes = np.unique(columns.series)[:_MAX_SERIES].tolist()
    figure, axes = plt.subplots(
        len(codes), 1, figsize=(12, 1.5 + 3.5 * len(codes)), squeeze=False, sharex=True
    )
    try:
        for axis, code in zip(axes[:, 0], codes, strict=True):
            _draw(axis, columns.select(columns.series == code))
            # a dollar sign would start a formula
            axis.set_title(columns.names[code][:80].replace("$", r"\$"), loc="left", fontsize=10)
            axis.grid(alpha=0.2)
        figure.autofmt_xdate()
        with warnings.catch_warnings(action="ignore"):  # the font lacks an emoji: so be it
            figure.tight_layout()
            figure.savefig(file, format="png", dpi=110)
    finally:
        plt.close(figure)


def _draw(axis: Any, columns: Columns) -> None:
    order = np.argsort(columns.instants, kind="stable")
    columns = columns.select(order)
    has_candles = all(name in columns for name in _CANDLE)
    if has_candles and len(columns) <= _MAX_CANDLES:
        _draw_candles(axis, columns)
        return
    names = ["close"] if has_candles else [n for n in columns if _is_number(columns.types[n])]
    if not names:
        raise QueryError("--png: the answer has no column of numbers to draw")
    for name in names[:6]:
        values: Any = np.ma.filled(np.ma.asarray(columns[name], dtype=float), np.nan)
        if columns.types[name].startswith("decimal"):
            values = values / 10.0 ** int(columns.types[name][len("decimal(") : -1])
        axis.plot(columns.ts, values, linewidth=1, label=name)
    axis.legend(loc="upper left", fontsize=8)


def _draw_candles(axis: Any, columns: Columns) -> None:
    start, high, low, end = (np.asarray(columns[n], dtype=float) for n in _CANDLE)
    ts = columns.ts
    apart = np.diff(columns.instants)
    width = np.timedelta64(int(np.median(apart) * 0.7) if len(apart) else 60_000_000, "us")
    colours = np.where(end >= start, _UP, _DOWN)
    axis.vlines(ts, low, high, colors=colours, linewidth=0.8)
    body = np.maximum(np.abs(end - start), (np.nanmax(high) - np.nanmin(low)) * 0.001)
    axis.bar(ts, body, width=width, bottom=np.minimum(start, end), color=colours)


def _is_number(kind: str) -> bool:
    return kind in ("float", "int") or kind.startswith("decimal")
