"""The parts a read is made of: rows that are held, rows that were fetched, and one table of all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from toolkit.cache.memory import Held, Key
from toolkit.cache.spans import Level
from toolkit.columns import unite
from toolkit.reduce import Table


@dataclass(frozen=True, slots=True)
class Part:
    """Rows of one series in ``[low, high)``, and where they come from.

    Held, or fetched as ``[begin, end)``: with a key to be held from then on, else the part only.
    """

    series: int
    level: Level
    low: int
    high: int
    begin: int
    end: int
    key: Key | None = None
    held: Held | None = None


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows of one series in order of time."""

    ts: Any
    values: Mapping[str, Any]
    categories: Mapping[str, tuple[str, ...]]

    def copy(self) -> Rows:
        """Return the same rows in arrays of their own."""
        return replace(
            self, ts=self.ts.copy(), values={n: v.copy() for n, v in self.values.items()}
        )


def grouped(parts: Sequence[Part]) -> list[tuple[Part, ...]]:
    """Return what is to be fetched, as few ranges: neighbours in time, then the same of others."""
    runs: list[list[Part]] = []
    for part in parts:
        if part.held is not None:
            continue
        last = runs[-1][-1] if runs else None
        if last is not None and last.series == part.series and last.end == part.begin:
            runs[-1].append(part)
        else:
            runs.append([part])
    together: dict[Any, list[Part]] = {}
    for run in runs:
        shape = (run[0].level.key, run[0].begin, run[-1].end)
        together.setdefault(shape, []).extend(run)
    return [tuple(group) for group in together.values()]


def cut(table: Table, code: int, begin: int, end: int) -> Rows:
    """Return the rows of one series in ``[begin, end)``."""
    low, high = np.searchsorted(table.series, (code, code + 1))
    a, b = low + np.searchsorted(table.ts[low:high], (begin, end))
    values = {n: v[a:b] for n, v in table.values.items()}
    return Rows(table.ts[a:b], values, dict(table.categories))


def rows_of(part: Part, names: Sequence[str]) -> Rows:
    """Return the rows of a part that is held, with some columns."""
    held = part.held
    assert held is not None
    if part.low == held.start and part.high == held.upto:
        return Rows(held.ts, held.values, held.categories)
    a, b = held.ts.searchsorted((part.low, part.high)).tolist()
    return Rows(held.ts[a:b], {n: held.values[n][a:b] for n in names}, held.categories)


def concatenated(rows: Sequence[Rows], codes: Sequence[int], names: Sequence[str]) -> Table:
    """Return rows of one or more series as one table."""
    if len(rows) == 1:
        only = rows[0]
        values = {n: only.values[n] for n in names}
        categories = {n: c for n, c in only.categories.items() if n in values}
        return Table(np.full(len(only.ts), codes[0], np.int32), only.ts, values, categories)
    ts = np.concatenate([r.ts for r in rows])
    series = np.repeat(np.array(codes, np.int32), [len(r.ts) for r in rows])
    joined: dict[str, Any] = {}
    categories = {}
    for name in names:
        if name in rows[0].categories:
            pairs = [(r.categories[name], r.values[name]) for r in rows]
            categories[name], joined[name] = unite(pairs)
        else:
            joined[name] = np.concatenate([r.values[name] for r in rows])
    return Table(series, ts, joined, categories)
