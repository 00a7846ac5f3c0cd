"""The road of warming: what is read often is read once before anybody asks."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from toolkit.columns import Columns
from toolkit.errors import QueryError, SchemaError, UnknownName
from toolkit.query import Query, build_query
from toolkit.statements import compose, name

if TYPE_CHECKING:
    from toolkit.roads import Roads

_log = logging.getLogger("toolkit.warming")
_LEAST = 1.0  # reads, halved every day


@dataclass(frozen=True, slots=True)
class Popular:
    """Series that are read together: at a step (empty: points), of a range like this one."""

    dataset: str
    series: tuple[str, ...]
    step: str
    start: datetime
    end: datetime
    reads: float

    def query(self) -> Query:
        """Return the read itself, which waits for all others."""
        return build_query(
            self.dataset,
            self.series,
            self.start,
            self.end,
            step=self.step or None,
            priority="batch",
        )


@dataclass(frozen=True, slots=True)
class WarmReport:
    """What a warming did: so many reads of series, and the rows of their answers.

    ``failed`` ones were not asked any more: of a dataset or step that has gone, for instance.
    """

    reads: int = 0
    series: int = 0
    rows: int = 0
    failed: int = 0
    seconds: float = 0.0


async def popular(roads: Roads, dataset: str | None, most: int) -> list[Popular]:
    """Return what is read most often, the most popular first."""
    schema = roads.settings.schema
    tables = {n: name(schema, n) for n in ("popularity", "series", "dataset")}
    params = {"dataset": dataset, "least": _LEAST, "most": most}
    rows = await roads.driver.fetch(compose("read/list_popular", **tables), params)
    return list(_grouped(rows, datetime.now(UTC)))


def _grouped(
    rows: Sequence[tuple[str, str, str, float, float, float]], now: datetime
) -> Iterator[Popular]:
    """Yield series that were read alike as one, in the order of the first of each."""
    found: dict[tuple[str, str, float, float], list[tuple[str, float]]] = {}
    for dataset, series, step, reads, width, behind in rows:
        found.setdefault((dataset, step, width, behind), []).append((series, reads))
    for (dataset, step, width, behind), each in found.items():
        end = now - timedelta(seconds=behind)
        start = end - timedelta(seconds=width)
        names = tuple(series for series, _ in each)
        yield Popular(dataset, names, step, start, end, sum(reads for _, reads in each))


async def warm_one(roads: Roads, one: Popular) -> Columns:
    """Read what is popular, so that the caches hold it; nobody has asked, so it does not count."""
    return await roads.read(one.query(), counts=False)


async def warm(
    roads: Roads, dataset: str | None, most: int, max_runtime: float | None
) -> WarmReport:
    """Read what is popular, so that the caches hold it; the most popular first."""
    started = time.perf_counter()
    reads, series, rows, failed = 0, 0, 0, 0
    for one in await popular(roads, dataset, most) if roads.cache is not None else ():
        if max_runtime is not None and time.perf_counter() - started >= max_runtime:
            break
        try:
            columns = await warm_one(roads, one)
        except (QueryError, SchemaError, UnknownName) as error:
            _log.info("%s of %s is not warmed: %s", one.step or "points", one.dataset, error)
            failed += 1
            continue
        reads, series, rows = reads + 1, series + len(one.series), rows + len(columns)
    return WarmReport(reads, series, rows, failed, time.perf_counter() - started)
