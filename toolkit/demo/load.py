"""Fills the store with the demo's bars, or finds that they are there already."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
)

from toolkit.demo import minutes
from toolkit.demo.bars import VENUES, DailyBars
from toolkit.intake import WriteReport
from toolkit.timegrid import Grid, Step

if TYPE_CHECKING:
    from toolkit.store import Store

DATASET = "candles"
_MARK = "demo"  # the label that says which version of the bars a series holds, once it has all


@dataclass(frozen=True, slots=True)
class Loaded:
    """What loading did: rows that had to be written, and the seconds of writing and refreshing."""

    rows: int
    write_s: float
    refresh_s: float

    @property
    def was_warm(self) -> bool:
        return self.rows == 0


def load(store: Store, daily: Mapping[str, DailyBars], since: str, console: Console) -> Loaded:
    """Store daily bars and the minute bars from ``since`` on, with labels, and refresh.

    Safe to interrupt: a chunk is stored whole or not at all, what is there is skipped the next
    time, and the mark that says that all is there comes last.
    """
    mark = f"v{minutes.VERSION} since {since}"
    begun = f"{mark}, unfinished"
    keeper = next(iter(daily))  # the series whose label is the mark of all
    found = {s.name: s.labels.get(_MARK) for s in store.series(DATASET)}
    if found.get(keeper) == mark:
        return Loaded(0, 0.0, store.refresh(DATASET).seconds)
    parts = minutes.chunks(daily, since)
    names = {p.series for p in parts} & set(found)
    newest = _newest(store, sorted(names)) if found.get(keeper) == begun else {}
    missing = [p for p in parts if p.series not in newest or p.last > newest[p.series]]
    days = pd.concat([d.to_frame().astype({"series": str}) for d in daily.values()])
    with _progress(console) as progress:
        bar = progress.add_task("writing bars", total=len(days) + sum(p.rows for p in missing))

        def show(report: WriteReport) -> None:
            progress.update(bar, completed=len(days) + report.received)

        report = store.write(DATASET, days)
        store.label(DATASET, keeper, {_MARK: begun})
        show(WriteReport())
        report += store.write(DATASET, minutes.frames(missing), on_chunk=show)
        for name, labels in _labels(daily, parts).items():
            store.label(DATASET, name, labels)
        refresh_s = _refresh(store, daily, parts, progress)
    store.label(DATASET, keeper, {_MARK: mark})
    return Loaded(report.received, report.seconds, refresh_s)


def _labels(
    daily: Mapping[str, DailyBars], parts: list[minutes.Chunk]
) -> dict[str, dict[str, str]]:
    steps = {ticker: (ticker, "1d") for ticker in daily}
    steps |= {p.series: (p.daily.ticker, "1m") for p in parts}
    return {
        name: {"ticker": ticker, "venue": VENUES[ticker], "step": step}
        for name, (ticker, step) in steps.items()
    }


def _newest(store: Store, names: list[str]) -> dict[str, np.datetime64]:
    """Return the time of the newest point of each series that has one."""
    if not names:
        return {}
    newest = store.latest(DATASET, names, columns=["close"])
    return {newest.names[code]: ts for code, ts in zip(newest.series, newest.ts, strict=True)}


def _refresh(
    store: Store, daily: Mapping[str, DailyBars], parts: list[minutes.Chunk], progress: Progress
) -> float:
    expected = _buckets(daily, parts)
    bar = progress.add_task("refreshing rollups", total=sum(expected.values()))
    done = dict.fromkeys(expected, 0)

    def show(step: str, buckets: int) -> None:
        done[step] = buckets
        progress.update(bar, completed=sum(done.values()))

    report = store.refresh(DATASET, show)
    progress.update(bar, completed=sum(expected.values()))
    return report.seconds


def _buckets(daily: Mapping[str, DailyBars], parts: list[minutes.Chunk]) -> dict[str, int]:
    """Return about how many buckets each rollup will have: a day's bar, and a day's minutes."""
    days, sessions = sum(map(len, daily.values())), sum(len(p.daily) for p in parts)
    found = {}
    for step in ("5m", "1h", "1d"):
        width = Grid(Step.parse(step)).width or 1
        found[step] = days + sessions * -(-minutes.SESSION * 60_000_000 // width)
    return found


@contextmanager
def _progress(console: Console) -> Iterator[Progress]:
    with Progress(
        SpinnerColumn(),
        TextColumn("{task.description:<20}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console,
    ) as progress:
        yield progress
