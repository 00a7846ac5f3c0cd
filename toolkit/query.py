"""A question, checked as far as it can be without a database."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from toolkit.errors import QueryError, shorten
from toolkit.timegrid import EARLIEST, LATEST, Grid, Span, Step, to_datetime, zone
from toolkit_routing import PRIORITIES, Token

_LONGEST = 864_000  # seconds: ten days
_MOST = 2**31 - 1
_FEW = 16  # names of a question that is remembered
STRATEGIES = ("auto", "direct", "aggregated", "downsampled")
OPERATORS = ("=", "!=", "<", "<=", ">", ">=", "in", "is null", "is not null")


@dataclass(frozen=True, slots=True)
class Condition:
    """One test on a point's value column; points where it is NULL fail all but ``is null``."""

    column: str
    operator: str
    value: object = None

    def __post_init__(self) -> None:
        if self.operator not in OPERATORS:
            raise QueryError(
                f"where: unknown operator {self.operator!r} on {self.column!r}; "
                f"use one of {', '.join(OPERATORS)}"
            )
        if self.operator == "in" and not isinstance(self.value, tuple):
            raise QueryError(f"where: {self.column!r} in … needs a list of values")


@dataclass(frozen=True, slots=True, eq=False)
class Asked:
    """All of a query but when; see :meth:`toolkit.Store.read` for the meaning of each field.

    ``series`` None means all that carry ``labels``. ``grid`` is None for native points;
    ``is_auto`` leaves the resolution to the chooser, in the zone of ``tz``. Equal only to
    itself: who asks the same again gets the same object, and what was worked out for it is
    found by its address.
    """

    dataset: str
    series: tuple[str, ...] | None
    labels: Mapping[str, str] | None = None
    columns: tuple[str, ...] | None = None
    agg: tuple[tuple[str, str], ...] = ()
    grid: Grid | None = None
    is_auto: bool = False
    tz: str = "UTC"
    points: int | None = None
    group_by: str | None = None
    where: tuple[Condition, ...] = ()
    limit: int | None = None
    descending: bool = False
    strategy: str = "auto"

    @property
    def is_native(self) -> bool:
        """Whether points, not bars, are asked for."""
        return self.grid is None and not self.is_auto


@dataclass(frozen=True, slots=True)
class Freshness:
    """How old an answer may be, in seconds; ``max_age`` None: as the settings say.

    ``sees_own``: it sees every write made through this store, however young; with a ``token``
    also every write that another store made before it gave that.
    """

    max_age: float | None = None
    sees_own: bool = True
    token: Token | None = None


SESSION = Freshness()
_FRESHNESS = {"session": SESSION, "strong": Freshness(0.0)}


def bounded(seconds: float) -> Freshness:
    """Return the freshness of answers that are at most so many seconds old.

    >>> bounded(30).max_age
    30.0
    """
    _check_seconds(seconds, "bounded", least=0.0)
    return Freshness(float(seconds), sees_own=False)


def after(token: str | Token) -> Freshness:
    """Return the freshness of who has written elsewhere: all that ``store.token()`` had seen there.

    A service hands the token on, in a header or a cookie, and its user's next request, in whatever
    process, sees what the one before has written.
    """
    try:
        found = token if isinstance(token, Token) else Token.parse(str(token).strip())
    except ValueError as error:
        raise QueryError(f"after: {error}") from None
    if not found.positions:
        raise QueryError("after: the token is empty; give what store.token() returned")
    return Freshness(token=found)


@dataclass(frozen=True, slots=True)
class Query:
    """A question: what is asked, the range of time it is about, and the seconds it may take.

    Where it may be answered from the cache (``is_cached``), no older than ``freshness`` says.
    ``caller`` and ``priority`` say whose turn it is when there is too much to do.
    """

    asked: Asked
    span: Span
    timeout: float | None = None
    freshness: Freshness = SESSION
    is_cached: bool = True
    caller: str = ""
    priority: str = "normal"


def build_query(
    dataset: str,
    series: str | Iterable[str] | None,
    start: object,
    end: object,
    *,
    labels: Mapping[str, str] | None = None,
    columns: str | Iterable[str] | None = None,
    agg: Mapping[str, str | Iterable[str]] | None = None,
    step: str | Step | None = None,
    tz: str = "UTC",
    points: int | None = None,
    group_by: str | None = None,
    where: Mapping[str, object] | Iterable[tuple[str, str, object]] | None = None,
    limit: int | None = None,
    descending: bool = False,
    strategy: str = "auto",
    timeout: float | None = None,
    freshness: str | Freshness | None = None,
    cache: bool = True,
    caller: str = "",
    priority: str = "normal",
) -> Query:
    """Build a query from what callers write, or say what is wrong with it.

    What was asked before is not checked again: a service asks a few things about many ranges.
    """
    if timeout is not None:
        _check_seconds(timeout, "timeout")
    if priority not in PRIORITIES:
        raise QueryError(f"priority: {priority!r} is none of {', '.join(PRIORITIES)}")
    fresh = SESSION if freshness is None else freshness_of(freshness)
    names = (series,) if type(series) is str else _names(series, "series")
    shown = columns if columns is None else _names(columns, "columns")
    rest = (step, tz, points, group_by, limit, descending, strategy)
    asked = None
    if labels is None and agg is None and where is None and (names is None or len(names) <= _FEW):
        with suppress(TypeError):  # something that cannot be a key: below it is said what is wrong
            asked = _ask_again(dataset, names, shown, *rest)
    if asked is None:
        asked = _ask(dataset, names, shown, *rest, labels, agg, conditions(where))
    return Query(asked, Span.between(start, end), timeout, fresh, bool(cache), caller, priority)


def _ask(
    dataset: str,
    names: tuple[str, ...] | None,
    columns: tuple[str, ...] | None,
    step: str | Step | None,
    tz: str,
    points: int | None,
    group_by: str | None,
    limit: int | None,
    descending: bool,
    strategy: str,
    labels: Mapping[str, str] | None = None,
    agg: Mapping[str, str | Iterable[str]] | None = None,
    where: tuple[Condition, ...] = (),
) -> Asked:
    if not isinstance(dataset, str):
        raise QueryError(f"dataset: expected a name, got {type(dataset).__name__}")
    if strategy not in STRATEGIES:
        raise QueryError(f"unknown strategy {strategy!r}; use one of {', '.join(STRATEGIES)}")
    _positive(points, "points", minimum=3)
    _positive(limit, "limit")
    if not isinstance(tz, str):
        raise QueryError(f"tz: expected the name of a time zone, got {type(tz).__name__}")
    if names is not None and labels:
        raise QueryError("give either series or labels, not both")
    grid = None if step is None or step == "auto" else Grid(Step.parse(step), tz)
    if grid is None and tz != "UTC":
        zone(tz)  # an unknown zone is refused whether it is used or not
    asked = Asked(
        dataset=dataset,
        series=names,
        labels=_labels(labels),
        columns=columns,
        agg=_agg(agg),
        grid=grid,
        is_auto=step == "auto",
        tz=tz,
        points=None if points is None else int(points),
        group_by=group_by,
        where=where,
        limit=None if limit is None else int(limit),
        descending=bool(descending),
        strategy=strategy,
    )
    _check_together(asked)
    return asked


# typed: a limit of True is not one of 1; what is refused is not remembered
_ask_again = lru_cache(maxsize=4_096, typed=True)(_ask)


def _check_together(asked: Asked) -> None:
    if asked.points is not None and not asked.is_native:
        raise QueryError("points= picks among native points itself; leave out step")
    if asked.points is not None and asked.limit is not None:
        raise QueryError("give either points or limit, not both")
    if asked.is_native and asked.agg:
        raise QueryError("agg needs a step: give step='1h', or step='auto'")
    if asked.is_native and asked.group_by:
        raise QueryError("group_by needs a step: give step='1h', or step='auto'")
    if asked.is_native and asked.points is None and asked.strategy in ("aggregated", "downsampled"):
        raise QueryError(
            f"strategy {asked.strategy!r} cannot answer native points; give a step, or points="
        )
    if asked.points is not None and asked.strategy == "aggregated":
        raise QueryError("strategy 'aggregated' cannot pick points; use direct or downsampled")


def conditions(
    where: Mapping[str, object] | Iterable[tuple[str, str, object]] | None,
) -> tuple[Condition, ...]:
    """Read ``where``: ``{"price": (">", 90)}``, ``{"side": "buy"}`` or ``[("price", ">", 90)]``.

    >>> conditions({"price": (">", 90), "side": ["buy", "sell"]})[1]
    Condition(column='side', operator='in', value=('buy', 'sell'))
    """
    if where is None:
        return ()
    if isinstance(where, Mapping):
        return tuple(_condition(column, test) for column, test in where.items())
    found = []
    for item in where:
        if not (isinstance(item, tuple | list) and len(item) in (2, 3)):
            raise QueryError("where: give a mapping, or a list of (column, operator, value)")
        column, operator, *rest = item
        found.append(Condition(column, operator, _listed(operator, rest[0] if rest else None)))
    return tuple(found)


def _condition(column: str, test: object) -> Condition:
    if isinstance(test, tuple) and test and test[0] in OPERATORS:
        return Condition(column, test[0], _listed(test[0], test[1] if len(test) > 1 else None))
    if isinstance(test, list | tuple | set | frozenset):
        return Condition(column, "in", tuple(test))
    return Condition(column, "is null") if test is None else Condition(column, "=", test)


def _listed(operator: object, value: object) -> object:
    return tuple(value) if operator == "in" and isinstance(value, Iterable) else value


def freshness_of(value: object) -> Freshness:
    """Return the freshness that a caller names; QueryError if it is none."""
    found = value if isinstance(value, Freshness) else _FRESHNESS.get(str(value))
    if found is None:
        raise QueryError(
            f"freshness: {shorten(str(value))} is none of 'session', 'strong', "
            "toolkit.bounded(seconds) and toolkit.after(token)"
        )
    return found


def _check_seconds(value: object, what: str, least: float = 1e-9) -> None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not least <= value <= _LONGEST:  # type: ignore[operator]  # a number
        most = f"at most {_LONGEST:,}"
        raise QueryError(f"{what}: {value!r} is not a positive number of seconds, {most}")


def _positive(value: object, what: str, minimum: int = 1) -> None:
    if value is None:
        return
    is_whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
    if not is_whole or not minimum <= value <= _MOST:  # type: ignore[operator]  # a number
        least = f"of at least {minimum} and at most {_MOST:,}"
        raise QueryError(f"{what}: {value!r} is not a whole number {least}")


def _names(value: str | Iterable[str] | None, what: str) -> tuple[str, ...] | None:
    if value is None:
        return None
    if isinstance(value, str):
        return (value,)
    if not isinstance(value, Iterable):
        raise QueryError(f"{what}: expected a name or names, got {type(value).__name__}")
    names = tuple(value)
    wrong = [n for n in names if not isinstance(n, str)]
    if wrong:
        raise QueryError(f"{what}: expected names, got {shorten(repr(wrong[0]))}")
    if not names:
        raise QueryError(f"{what}: the list is empty; leave it out to mean all")
    return tuple(dict.fromkeys(names))


def _labels(labels: Mapping[str, str] | None) -> Mapping[str, str] | None:
    if labels is None:
        return None
    if not isinstance(labels, Mapping):
        raise QueryError(f"labels: expected a mapping, got {type(labels).__name__}")
    for key, value in labels.items():
        if not isinstance(key, str) or not isinstance(value, str):
            raise QueryError(f"labels: {key!r}: {value!r} must both be text")
    return dict(labels)


def _agg(agg: Mapping[str, str | Iterable[str]] | None) -> tuple[tuple[str, str], ...]:
    pairs: list[tuple[str, str]] = []
    if agg is not None and not isinstance(agg, Mapping):
        raise QueryError("agg: give a mapping of columns to kinds, like {'close': ['max']}")
    for column, kinds in (agg or {}).items():
        if not isinstance(kinds, Iterable):
            raise QueryError(f"agg: {column!r}: expected kinds, got {type(kinds).__name__}")
        pairs += [(column, k) for k in ((kinds,) if isinstance(kinds, str) else kinds)]
    return tuple(pairs)


def ends_of(start: object, end: object) -> tuple[object, object]:
    """Return the ends of a range, None being those of all time."""
    low = to_datetime(EARLIEST) if start is None else start
    return low, to_datetime(LATEST) if end is None else end


def latest_query(
    dataset: str,
    series: Any,
    labels: Mapping[str, str] | None,
    columns: Any,
    step: str | None,
    tz: str,
) -> Query:
    """Return the query behind ``latest``: over all of time."""
    if step == "auto":
        raise QueryError("latest: give a step like '1h', or none for points")
    everything = to_datetime(EARLIEST), to_datetime(LATEST)
    return build_query(
        dataset, series, *everything, labels=labels, columns=columns, step=step, tz=tz, cache=False
    )
