"""The log of calls that take long: what was asked, how it was answered, and where."""

from __future__ import annotations

import logging

from toolkit.columns import Columns
from toolkit.errors import counted
from toolkit.intake import WriteReport
from toolkit.query import Query
from toolkit.strategy import Plan
from toolkit.timegrid import iso

_log = logging.getLogger("toolkit.slow")
_NAMED = 3
WORDS = {
    "read": "read of",
    "latest": "latest of",
    "stream": "first rows of a stream of",
    "write": "write to",
    "delete": "delete of",
}
"""The operations that somebody waits for; those of jobs take the time they take."""


def tell(
    operation: str,
    asked: Query | str,
    seconds: float,
    outcome: Columns | WriteReport | BaseException | None,
) -> None:
    """Log a call that took long, at WARNING; waiting for a turn or a lock was part of it."""
    text = asked if isinstance(asked, str) else in_words(asked)
    _log.warning("%s %s took %.3f s: %s", WORDS[operation], text, seconds, _how(outcome))


def _how(outcome: Columns | WriteReport | BaseException | None) -> str:
    if isinstance(outcome, BaseException):
        return f"failed: {type(outcome).__name__}"
    if isinstance(outcome, Columns):
        plan = outcome.plan
        assert isinstance(plan, Plan)
        touched = ", ".join(f"{count:,} of {kind}" for kind, count in plan.sources.items())
        where = f" on {plan.node}" if plan.node else ""
        return (
            f"{plan.strategy}{where}, {counted(len(outcome), 'rows')} from {touched or 'nothing'}"
        )
    if isinstance(outcome, WriteReport):
        counts = {n: getattr(outcome, n) for n in ("inserted", "updated", "unchanged")}
        return ", ".join(f"{counted(n, 'rows')} {how}" for how, n in counts.items() if n) or "done"
    return "done"


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
