"""What callers ask for often: counted on every read and written down now and then, for warming."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from datetime import timedelta
from functools import partial

from toolkit.drivers import Driver
from toolkit.errors import DatabaseError, ReadOnlyDatabase, SchemaError
from toolkit.query import Asked, Query
from toolkit.statements import compose, name
from toolkit.strategy import Plan
from toolkit.timegrid import SECOND, Span

_log = logging.getLogger("toolkit.popularity")
EVERY = 60.0  # seconds between two writes
_FIRST = 5.0  # seconds after the first read
_MOST = 1_000  # questions that are remembered until then
_SERIES = 100  # of a question
_LOOK = 15  # reads of a question between two looks at the clock
_TIMEOUT = 2.0
_LATER = 600.0  # seconds until it is tried again where the server takes no writes
_NO_RIGHT = "42501"


class _Count:
    __slots__ = ("plan", "reads", "span")

    def __init__(self, span: Span, plan: Plan) -> None:
        self.reads, self.span, self.plan = 1, span, plan


class Popularity:
    """Counts of one store; threads may share it, without a lock: a lost count is no loss.

    Written in the background, to the primary. Where this role may not it is off from then on.
    """

    def __init__(
        self, driver: Driver, schema: str, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._driver, self._schema, self._clock = driver, schema, clock
        self._counted: dict[Asked, _Count] = {}
        self._due = clock() + _FIRST
        self.is_off = False

    def count(self, query: Query, plan: Plan) -> None:
        """Count a read; costs a look into a dict, and now and then one at the clock."""
        one = self._counted.get(query.asked)
        if one is not None:
            one.reads += 1
            one.span = query.span
            if one.reads & _LOOK:
                return
        elif self.is_off or query.asked.series is None:
            return
        elif len(self._counted) < _MOST:
            self._counted[query.asked] = _Count(query.span, plan)
        if self._clock() > self._due:
            self.flush()

    def flush(self) -> None:
        """Have what was counted written where nobody waits for it."""
        self._due = self._clock() + EVERY
        counted, self._counted = self._counted, {}
        if counted:
            self._driver.later(("popularity",), partial(self._write, counted))

    async def _write(self, counted: Mapping[Asked, _Count]) -> None:
        params = _params(counted, time.time())
        tables = {n: name(self._schema, n) for n in ("popularity", "series", "dataset")}
        try:
            async with self._driver.transaction(timeout=_TIMEOUT, patience=_TIMEOUT) as transaction:
                await transaction.execute(compose("write/add_popularity", **tables), params)
        except ReadOnlyDatabase as error:
            self._due = self._clock() + _LATER
            _log.info("what is asked often was not written down this time: %s", error)
        except (DatabaseError, SchemaError) as error:
            # the other is a schema of before, without the table
            self.is_off = not isinstance(error, DatabaseError) or error.sqlstate == _NO_RIGHT
            _log.info("what is asked often was not written down: %s", error)


def _params(counted: Mapping[Asked, _Count], now: float) -> dict[str, list[object]]:
    """Return the counts as one array a column, a row for each series of a question.

    >>> _params({}, 0.0)["steps"]
    []
    """
    found: dict[tuple[str, str, str], list[float]] = {}
    for asked, one in list(counted.items()):  # a late thread may still count into it
        step = one.plan.step or ""
        behind = now - one.span.end / SECOND
        for series in (asked.series or ())[:_SERIES]:
            row = found.setdefault((asked.dataset, series, step), [0.0, 0.0, 0.0])
            row[0] += one.reads
            row[1] = max(row[1], one.span.width / SECOND)
            row[2] = behind
    keys = sorted(found)  # in one order, so that two stores do not wait for each other
    return {
        "datasets": [k[0] for k in keys],
        "series": [k[1] for k in keys],
        "steps": [k[2] for k in keys],
        "reads": [found[k][0] for k in keys],
        "widths": [timedelta(seconds=found[k][1]) for k in keys],
        "behind": [timedelta(seconds=found[k][2]) for k in keys],
    }
