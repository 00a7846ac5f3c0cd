"""What a dataset is: its columns, how they aggregate, its ladder and how time is partitioned."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from toolkit.errors import QueryError, SchemaError, UnknownName
from toolkit.retaining import Retention
from toolkit.timegrid import DAY, Grid, Span, Step

if TYPE_CHECKING:
    import pandas as pd

KINDS = ("first", "last", "min", "max", "sum", "count", "avg")
_KINDS_OF_TYPE = {
    "float": KINDS,
    "int": KINDS,
    "decimal": KINDS,
    "bool": ("first", "last", "count"),
    "category": ("first", "last", "count"),
}
_NAME = re.compile(r"[a-z][a-z0-9_]{0,39}")
_DECIMAL = re.compile(r"decimal\(([0-9]|1[0-8])\)")
_RESERVED = {"series", "series_id", "ts", "seq", "xid", "lo", "hi"}
_TAKEN_SUFFIX = re.compile(r"_(log|blocks|p[0-9]{8}|[0-9]+[smhdwMy])")
_ANY = Span(0, 0)  # fixed widths fit each other everywhere or nowhere
_FOR_EVER = Retention()
_MAX_COVERED = 28  # an index holds 32 columns: the key, and what it covers


@dataclass(frozen=True, slots=True)
class Column:
    """One value column of a dataset.

    ``type`` is ``float`` (float8), ``int`` (bigint), ``bool``, ``category`` (text in the
    database, codes in answers) or ``decimal(n)``: exact, n digits after the point, stored as a
    scaled bigint. Every column may be NULL; NaN is stored as NULL.
    """

    name: str
    type: str = "float"

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name) or self.name in _RESERVED:
            raise SchemaError(
                f"column name {self.name!r}: use lower case letters, digits and _, at most 40, "
                f"none of {', '.join(sorted(_RESERVED))}"
            )
        if self.base not in _KINDS_OF_TYPE or (self.base == "decimal") != bool(self.is_decimal):
            raise SchemaError(
                f"column {self.name!r}: unknown type {self.type!r}; "
                "use float, int, bool, category or decimal(n) with n up to 18"
            )

    @property
    def base(self) -> str:
        """The type without its scale."""
        return self.type.partition("(")[0]

    @property
    def is_decimal(self) -> bool:
        return _DECIMAL.fullmatch(self.type) is not None

    @property
    def scale(self) -> int:
        """Digits after the point; 0 for what is not decimal."""
        match = _DECIMAL.fullmatch(self.type)
        return int(match[1]) if match else 0

    @property
    def kinds(self) -> tuple[str, ...]:
        """The aggregates this type has."""
        return _KINDS_OF_TYPE[self.base]


@dataclass(frozen=True, slots=True)
class Aggregate:
    """One column of a bar: ``kind`` of a value column, or a weighted mean.

    ``kind="vwap"`` is Σ(mean(of) · by) / Σ by over the points where all of them have a value;
    every other kind takes one column and ignores NULL. ``first`` and ``last`` are the values at
    the least and greatest (ts, seq) that have one.
    """

    name: str
    kind: str
    of: tuple[str, ...]
    by: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "of", (self.of,) if isinstance(self.of, str) else tuple(self.of))
        if not _NAME.fullmatch(self.name) or self.name in _RESERVED:
            raise SchemaError(f"aggregate name {self.name!r} is not usable as a column name")
        if self.kind == "vwap":
            if not self.of or self.by is None:
                raise SchemaError(
                    f"aggregate {self.name!r}: a vwap needs price columns and a weight"
                )
        elif self.kind not in KINDS or len(self.of) != 1 or self.by is not None:
            raise SchemaError(
                f"aggregate {self.name!r}: use one of {', '.join(KINDS)} of one column, or a vwap"
            )

    @property
    def inputs(self) -> tuple[str, ...]:
        """The value columns it reads."""
        return (*self.of, self.by) if self.by is not None else self.of


@dataclass(frozen=True, slots=True)
class State:
    """One mergeable piece of an aggregate, as a rollup stores it.

    ``kind`` is first, first_ts, last, last_ts, min, max, sum, count, or pv and v, the two sums
    of a vwap. ``type`` is float, int, bool, category, decimal(n) or time.
    """

    name: str
    kind: str
    of: tuple[str, ...]
    type: str
    by: str | None = None


@dataclass(frozen=True, slots=True)
class Index:
    """An extra index on a dataset's rows; ``where`` (SQL, yours) makes it partial."""

    columns: tuple[str, ...]
    where: str | None = None

    def __post_init__(self) -> None:
        columns = (self.columns,) if isinstance(self.columns, str) else tuple(self.columns)
        object.__setattr__(self, "columns", columns)


@dataclass(frozen=True, slots=True)
class Dataset:
    """A family of series with the same columns, declared once.

    ``aggregates`` are the columns of a bar, what a read with a step returns. ``ladder`` lists
    the rollup steps, finest first, each a multiple of the one before. ``partition`` is the time
    range of one partition of the rows (days, weeks, months or years, UTC). ``has_seq`` adds
    ``seq`` to the key where several points may share a microsecond. ``chart`` is the column
    that ``points=`` draws. ``changelog`` says who logs changes: database triggers, which see
    every client, or the writing store, where triggers cannot be had. Points older than
    ``compress_after`` (a step: 30d) become blocks when it is compressed; empty: never by itself.
    ``retain`` says how long what is kept.
    """

    name: str
    columns: tuple[Column, ...]
    aggregates: tuple[Aggregate, ...]
    ladder: tuple[str, ...] = ("5m", "1h", "1d")
    partition: str = "1M"
    has_seq: bool = False
    chart: str = ""
    indexes: tuple[Index, ...] = ()
    changelog: str = "trigger"
    compress_after: str = ""
    retain: Retention = _FOR_EVER
    _by_name: Mapping[str, Column] = field(
        init=False, repr=False, compare=False, default_factory=dict
    )
    _states_of: Mapping[Aggregate, tuple[State, ...]] = field(
        init=False, repr=False, compare=False, default_factory=dict
    )
    _states: tuple[State, ...] = field(init=False, repr=False, compare=False, default=())

    def __post_init__(self) -> None:
        for name in ("columns", "aggregates", "ladder", "indexes"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        object.__setattr__(self, "_by_name", {c.name: c for c in self.columns})
        if not _NAME.fullmatch(self.name) or _TAKEN_SUFFIX.search(self.name):
            raise SchemaError(
                f"dataset name {self.name!r}: use lower case letters, digits and _, at most 40, "
                "and no ending the toolkit gives its own tables (_log, _blocks, _5m, _p20240101)"
            )
        self._check_columns()
        self._check_ladder()
        states_of = {a: self._states_from(a) for a in self.aggregates}
        found = {s.name: s for states in states_of.values() for s in states}
        object.__setattr__(self, "_states_of", states_of)
        object.__setattr__(self, "_states", tuple(found.values()))
        if not self.chart:
            numeric = [c.name for c in self.columns if c.base in ("float", "int", "decimal")]
            chart = "close" if "close" in numeric else next(iter(numeric), "")
            object.__setattr__(self, "chart", chart)

    def _check_columns(self) -> None:
        if not self.columns:
            raise SchemaError(f"dataset {self.name!r} has no columns")
        for what, names in (
            ("column", [c.name for c in self.columns]),
            ("aggregate", [a.name for a in self.aggregates]),
        ):
            twice = sorted({n for n in names if names.count(n) > 1})
            if twice:
                raise SchemaError(f"dataset {self.name!r}: {what} {twice[0]!r} is declared twice")
        for aggregate in self.aggregates:
            for name in aggregate.inputs:
                column = self.column(name)
                kinds = (*column.kinds, "vwap") if "sum" in column.kinds else column.kinds
                if aggregate.kind not in kinds:
                    raise SchemaError(
                        f"aggregate {aggregate.name!r}: "
                        f"a {column.type} column has no {aggregate.kind}"
                    )
        for index in self.indexes:
            for name in index.columns:
                if name not in ("series_id", "ts", "seq"):
                    self.column(name)
        if self.chart:
            self.column(self.chart)
        if self.changelog not in ("trigger", "writer"):
            raise SchemaError(f"dataset {self.name!r}: changelog is 'trigger' or 'writer'")
        self.retain.check(self.name, self.ladder, self.compress_after)

    def _check_ladder(self) -> None:
        grids = self.grids
        if grids and not self.aggregates:
            raise SchemaError(f"dataset {self.name!r}: a ladder needs aggregates to roll up")
        if any(g.width is None for g in grids):
            raise SchemaError(f"dataset {self.name!r}: a ladder is made of s, m, h, d and w steps")
        for finer, coarser in pairwise(grids):
            if coarser.step.approximate_us <= finer.step.approximate_us or not coarser.is_on(
                finer, _ANY
            ):
                raise SchemaError(
                    f"dataset {self.name!r}: ladder step {coarser.step} is not a multiple "
                    f"of {finer.step}"
                )
        if grids and (grids[0].width or 0) > DAY:
            raise SchemaError(f"dataset {self.name!r}: the ladder's finest step is at most a day")
        if Step.parse(self.partition).unit not in "dwMy":
            raise SchemaError(
                f"dataset {self.name!r}: partition {self.partition!r} is not in days, weeks, "
                "months (M) or years"
            )

    @property
    def grids(self) -> tuple[Grid, ...]:
        """The ladder as grids, finest first."""
        return tuple(Grid(Step.parse(s)) for s in self.ladder)

    @property
    def log_step(self) -> Grid:
        """The cells in which the change log counts: the finest ladder step, or an hour."""
        return self.grids[0] if self.ladder else Grid(Step(1, "h"))

    @property
    def key(self) -> tuple[str, ...]:
        """The key's columns."""
        return ("series_id", "ts", "seq") if self.has_seq else ("series_id", "ts")

    @property
    def names(self) -> tuple[str, ...]:
        """The value columns' names."""
        return tuple(c.name for c in self.columns)

    @property
    def covered(self) -> tuple[str, ...]:
        """The value columns the key's index carries along."""
        return self.names[:_MAX_COVERED]

    def column(self, name: str) -> Column:
        """Return the column called ``name`` or say which there are."""
        try:
            return self._by_name[name]
        except KeyError:
            raise UnknownName("column", name, self._by_name, f"dataset {self.name!r}") from None

    def aggregate(self, name: str) -> Aggregate:
        """Return the bar column called ``name`` or say which there are."""
        by_name = {a.name: a for a in self.aggregates}
        if name in by_name:
            return by_name[name]
        raise UnknownName("column", name, by_name, f"bars of dataset {self.name!r}")

    def extra_aggregate(self, column: str, kind: str) -> Aggregate:
        """Return the bar column for ``kind`` of ``column``: the dataset's own, else a new one."""
        if kind not in self.column(column).kinds:
            raise QueryError(
                f"no aggregate {kind!r} of column {column!r} ({self.column(column).type}); "
                f"it has {', '.join(self.column(column).kinds)}"
            )
        for own in self.aggregates:
            if own.kind == kind and own.of == (column,):
                return own
        return Aggregate(f"{column}_{kind}", kind, (column,))

    def states_of(self, aggregate: Aggregate) -> tuple[State, ...]:
        """Return the mergeable states that ``aggregate`` is derived from."""
        return self._states_of.get(aggregate) or self._states_from(aggregate)

    def _states_from(self, aggregate: Aggregate) -> tuple[State, ...]:
        column = self.column(aggregate.of[0])
        name, of = column.name, (column.name,)
        match aggregate.kind:
            case "vwap":
                stem, prices, by = aggregate.name, aggregate.of, aggregate.by
                return (
                    State(f"{stem}_pv", "pv", prices, "float", by),
                    State(f"{stem}_v", "v", prices, "float", by),
                )
            case "first" | "last" as kind:
                return (
                    State(f"{name}_{kind}", kind, of, column.type),
                    State(f"{name}_{kind}_ts", f"{kind}_ts", of, "time"),
                )
            case "avg":
                return (
                    State(f"{name}_sum", "sum", of, column.type),
                    State(f"{name}_count", "count", of, "int"),
                )
            case "count":
                return (State(f"{name}_count", "count", of, "int"),)
            case kind:
                return (State(f"{name}_{kind}", kind, of, column.type),)

    @property
    def states(self) -> tuple[State, ...]:
        """All states a rollup of this dataset stores, each once."""
        return self._states

    def answer_type(self, aggregate: Aggregate) -> str:
        """Return the column type of an aggregate's values."""
        if aggregate.kind in ("avg", "vwap"):
            return "float"
        return "int" if aggregate.kind == "count" else self.column(aggregate.of[0]).type

    def to_mapping(self) -> dict[str, Any]:
        """Return the declaration as JSON-ready values; :meth:`from_mapping` reads it back."""
        return {
            "name": self.name,
            "columns": [{"name": c.name, "type": c.type} for c in self.columns],
            "aggregates": [
                {"name": a.name, "kind": a.kind, "of": list(a.of)} | ({"by": a.by} if a.by else {})
                for a in self.aggregates
            ],
            "ladder": list(self.ladder),
            "partition": self.partition,
            "has_seq": self.has_seq,
            "chart": self.chart,
            "indexes": [{"columns": list(i.columns), "where": i.where} for i in self.indexes],
            "changelog": self.changelog,
            "compress_after": self.compress_after,
            # only where it is set: older versions do not know it
            **({"retain": kept} if (kept := self.retain.to_mapping()) else {}),
        }

    @classmethod
    def from_mapping(cls, mapping: Mapping[str, Any]) -> Dataset:
        """Build a dataset from what :meth:`to_mapping` returns, or from TOML of that shape."""
        known = {f for f in cls.__dataclass_fields__ if not f.startswith("_")}
        for key in mapping:
            if key not in known:
                raise UnknownName("setting", key, known, f"dataset {mapping.get('name')!r}")
        try:
            return cls(
                **{
                    **mapping,
                    "columns": tuple(Column(**c) for c in mapping["columns"]),
                    "aggregates": tuple(Aggregate(**a) for a in mapping.get("aggregates", ())),
                    "indexes": tuple(Index(**i) for i in mapping.get("indexes", ())),
                    "retain": Retention(**mapping.get("retain", {})),
                }
            )
        except (KeyError, TypeError) as error:
            raise SchemaError(f"dataset {mapping.get('name')!r}: {error}") from None

    @classmethod
    def from_frame(cls, frame: pd.DataFrame, name: str = "points") -> Dataset:
        """Propose a dataset for a frame with ``ts`` and perhaps ``series`` and ``seq`` columns.

        Columns called open, high, low, close and volume aggregate as a candle's; other numbers
        get avg, min, max, sum and count; text and booleans their last value. The partition
        interval follows the density: some millions of rows each.
        """
        from toolkit.ingest.proposal import propose

        return propose(frame, name)


_OHLCV = {"open": "first", "high": "max", "low": "min", "close": "last", "volume": "sum"}

CANDLES = Dataset(
    name="candles",
    columns=tuple(Column(n) for n in _OHLCV),
    aggregates=(
        *(Aggregate(n, kind, (n,)) for n, kind in _OHLCV.items()),
        Aggregate("vwap", "vwap", ("high", "low", "close"), "volume"),
    ),
)

TRADES = Dataset(
    name="trades",
    columns=(Column("price"), Column("size"), Column("side", "category")),
    aggregates=(
        Aggregate("open", "first", ("price",)),
        Aggregate("high", "max", ("price",)),
        Aggregate("low", "min", ("price",)),
        Aggregate("close", "last", ("price",)),
        Aggregate("volume", "sum", ("size",)),
        Aggregate("vwap", "vwap", ("price",), "size"),
    ),
    ladder=("1m", "5m", "1h", "1d"),
    partition="1w",
    has_seq=True,
    chart="price",
)

METRICS = Dataset(
    name="metrics",
    columns=(Column("value"),),
    aggregates=(
        Aggregate("value", "avg", ("value",)),
        *(
            Aggregate(f"value_{kind}", kind, ("value",))
            for kind in ("min", "max", "sum", "count", "first", "last")
        ),
    ),
    partition="1w",
)

SHIPPED = (CANDLES, TRADES, METRICS)
