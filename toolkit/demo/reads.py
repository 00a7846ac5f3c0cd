"""What the demo asks of the store, and the table of how each answer came about."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.table import Table

from toolkit.columns import Columns
from toolkit.strategy import Plan

if TYPE_CHECKING:
    from toolkit.aio import AsyncStore
    from toolkit.store import Store

DATASET = "candles"
_TRIES = 3


@dataclass(frozen=True, slots=True)
class Ask:
    """One read: what it is in words, and the arguments of ``store.read``."""

    words: str
    series: str | Sequence[str] | None
    start: str
    end: str
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def arguments(self) -> tuple[Any, ...]:
        return DATASET, self.series, self.start, self.end


@dataclass(frozen=True, slots=True)
class Answer:
    """One line of the table; ``ms`` is the best of three, after the statement was prepared."""

    words: str
    strategy: str
    why: str
    rows: int
    points: int
    ms: float

    @classmethod
    def of(cls, words: str, columns: Columns, ms: float | None = None) -> Answer:
        plan = columns.plan
        assert isinstance(plan, Plan)
        step = f" {plan.step}" if plan.step else ""
        source = f", from {plan.rollup.grid.step}" if plan.rollup is not None else ""
        return cls(
            words,
            f"{plan.strategy}{step}{source}",
            plan.reason,
            plan.rows,
            len(columns),
            plan.elapsed_ms if ms is None else ms,
        )


YEAR = ("2012-01-01T00:00Z", "2013-01-01T00:00Z")
ALL = ("2000-01-01T00:00Z", "2014-01-01T00:00Z")
_NEW_YORK = {"tz": "America/New_York"}

ASKS = (
    Ask("AAPL, the daily bars of 2012", "AAPL", *YEAR),
    Ask("AAPL, one day by the minute", "AAPL/1m", "2012-06-01T00:00Z", "2012-06-02T00:00Z"),
    Ask("AAPL, 2012 by the minute", "AAPL/1m", *YEAR),
    Ask(
        "AAPL, a week as half hours",
        "AAPL/1m",
        "2012-06-04T00:00Z",
        "2012-06-09T00:00Z",
        {"step": "30m"},
    ),
    Ask("AAPL, 2012 as hours", "AAPL/1m", *YEAR, {"step": "1h"}),
    Ask("AAPL, all minutes as New York days", "AAPL/1m", *ALL, {"step": "1d", **_NEW_YORK}),
    Ask("MSFT, all minutes, what fits a screen", "MSFT/1m", *ALL, {"step": "auto"}),
    Ask("IBM, 2012 as a picture of 800 points", "IBM/1m", *YEAR, {"points": 800}),
    Ask(
        "GOOG, minutes above 760, as days",
        "GOOG/1m",
        *ALL,
        {"step": "1d", "where": {"close": (">", 760)}, **_NEW_YORK},
    ),
    Ask(
        "every minute series, as months, one per venue",
        None,
        *ALL,
        {"labels": {"step": "1m"}, "group_by": "venue", "step": "1M", **_NEW_YORK},
    ),
)

EXPLAINED = ASKS[3]
SAME = Ask("AAPL, 2012 as hours", "AAPL/1m", *YEAR, {"step": "1h"})


def at_once(tickers: Sequence[str]) -> tuple[Ask, ...]:
    """Return one read for each share, for the asyncio store to run together."""
    return tuple(
        Ask(f"{ticker}, 2012 as hours, asyncio", f"{ticker}/1m", *YEAR, {"step": "1h"})
        for ticker in tickers
    )


def read(store: Store, ask: Ask) -> Columns:
    """Return the fastest of a few identical reads."""
    answers = [store.read(*ask.arguments, **ask.options) for _ in range(_TRIES)]
    return min(answers, key=_elapsed)


async def ask_at_once(store: AsyncStore, asks: Sequence[Ask]) -> tuple[list[Answer], float]:
    """Ask all at the same time on the asyncio store; return the milliseconds of the whole, too."""

    async def together() -> list[Columns]:
        return await asyncio.gather(*(store.read(*a.arguments, **a.options) for a in asks))

    await together()  # opens the connections
    started = time.perf_counter()
    found = await together()
    whole = (time.perf_counter() - started) * 1000
    return [Answer.of(a.words, c) for a, c in zip(asks, found, strict=True)], whole


def ask_each_way(store: Store, ask: Ask) -> tuple[list[Answer], bool]:
    """Ask the same by every strategy; return the answers, and whether all values agree."""
    answers, found = [], []
    for strategy in ("direct", "aggregated", "downsampled"):
        forced = replace(ask, options={**ask.options, "strategy": strategy})
        columns = read(store, forced)
        answers.append(Answer.of(f"{ask.words}, {strategy}", columns))
        found.append(columns)
    return answers, all(agree(found[0], other) for other in found[1:])


def agree(one: Columns, other: Columns) -> bool:
    """Return whether two answers have the same rows, float sums up to the order of adding."""
    return (
        len(one) == len(other)
        and bool((one.instants == other.instants).all())
        and bool((one.series == other.series).all())
        and all(
            np.allclose(one.raw(n), other.raw(n), rtol=1e-12, atol=0, equal_nan=True) for n in one
        )
    )


def table(title: str, answers: Sequence[Answer], caption: str = "") -> Table:
    """Return the table of answers."""
    shown = Table(title=title, caption=caption, title_justify="left", caption_justify="left")
    shown.add_column("asked", overflow="fold", ratio=4)
    shown.add_column("answered by", overflow="fold", ratio=3)
    shown.add_column("because", overflow="fold", ratio=5, style="dim")
    for name in ("rows touched", "points", "ms"):
        shown.add_column(name, justify="right", no_wrap=True)
    for answer in answers:
        shown.add_row(
            answer.words,
            answer.strategy,
            answer.why,
            f"{answer.rows:,}",
            f"{answer.points:,}",
            f"{answer.ms:,.1f}",
        )
    return shown


def _elapsed(columns: Columns) -> float:
    assert isinstance(columns.plan, Plan)
    return columns.plan.elapsed_ms
