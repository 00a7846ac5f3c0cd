"""The log of calls that take long: what was asked, how it was answered, and where."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

from toolkit.columns import Columns
from toolkit.intake import WriteReport
from toolkit.query import Query
from toolkit.strategy import Plan
from toolkit.timegrid import iso

_log = logging.getLogger("toolkit.slow")
_NAMED = 3


class Call:
    """One call under way; ``outcome`` is what is known of how it went."""

    def __init__(self) -> None:
        self.outcome = ""

    def answered(self, columns: Columns) -> None:
        """Take how a read was answered."""
        plan = columns.plan
        assert isinstance(plan, Plan)
        touched = ", ".join(f"{count:,} of {kind}" for kind, count in plan.sources.items())
        where = f" on {plan.node}" if plan.node else ""
        self.outcome = f"{plan.strategy}{where}, {len(columns):,} rows from {touched or 'nothing'}"

    def wrote(self, report: WriteReport) -> None:
        """Take what a write did."""
        counts = {n: getattr(report, n) for n in ("inserted", "updated", "unchanged")}
        self.outcome = ", ".join(f"{n:,} rows {how}" for how, n in counts.items() if n)


class _Unheard(Call):
    """One of which nobody wants to know."""

    def answered(self, columns: Columns) -> None: ...
    def wrote(self, report: WriteReport) -> None: ...


_UNTIMED = nullcontext(_Unheard())


class SlowLog:
    """Logs calls that took ``threshold`` seconds or more, at WARNING; 0 logs none.

    Waiting counts: for a turn, a connection, a lock, a primary. What fails is logged, too.
    """

    def __init__(self, threshold: float, clock: Callable[[], float] = time.perf_counter) -> None:
        self._threshold = threshold
        self._clock = clock

    def over(self, what: str, asked: Query | str) -> AbstractContextManager[Call]:
        """Time the block; ``what`` is done with a query, or with what a text names."""
        return self._timed(what, asked) if self._threshold else _UNTIMED

    @contextmanager
    def _timed(self, what: str, asked: Query | str) -> Iterator[Call]:
        call, began = Call(), self._clock()
        try:
            yield call
        except BaseException as error:
            call.outcome = f"failed: {type(error).__name__}"
            raise
        finally:
            took = self._clock() - began
            if took >= self._threshold:
                text = asked if isinstance(asked, str) else in_words(asked)
                _log.warning("%s %s took %.3f s: %s", what, text, took, call.outcome or "done")


def in_words(query: Query) -> str:
    """Return what a query asks, in a line, without its values.

    >>> from toolkit.query import build_query
    >>> in_words(build_query("candles", "BTC-USD", "2024-05-01Z", "2024-05-02Z", step="1h"))
    'candles BTC-USD 2024-05-01T00:00Z to 2024-05-02T00:00Z step=1h'
    """
    asked = query.asked
    names = asked.series
    if names is None:
        of = " ".join(f"{key}={value}" for key, value in (asked.labels or {}).items()) or "(all)"
    elif len(names) > _NAMED:
        of = f"{', '.join(names[:_NAMED])} and {len(names) - _NAMED:,} more"
    else:
        of = ", ".join(names)
    said = [asked.dataset, of, iso(query.span.start), "to", iso(query.span.end)]
    if asked.grid is not None:
        said.append(f"step={asked.grid.step}")
    elif asked.is_auto:
        said.append("step=auto")
    for name in ("points", "limit", "group_by"):
        if (value := getattr(asked, name)) is not None:
            said.append(f"{name}={value}")
    if asked.where:
        said.append(f"where {', '.join(dict.fromkeys(w.column for w in asked.where))}")
    if query.caller:
        said.append(f"for {query.caller}")
    return " ".join(said)
