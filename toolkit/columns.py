"""The answer of a read: named columns over (series, time), held as numpy arrays.

Between the database and numpy a missing value travels in-band, so that a column is one plain
array: float as float64 with NaN, int and decimal(n) as int64 with ``NULL_INT`` (decimals are
scaled integers), bool as int8 0, 1 or ``NULL_BOOL``, category as int32 codes with
``NULL_CODE``, time as int64 microseconds since 1970 UTC with ``NULL_INT`` (numpy's NaT).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import numpy.typing as npt

from toolkit.errors import MissingExtra, QueryError, UnknownName, counted
from toolkit.timegrid import Instants, iso

if TYPE_CHECKING:
    import pandas as pd
    import polars as pl
    import pyarrow as pa

_T = TypeVar("_T", bound=np.generic)

Codes = npt.NDArray[np.int32]
InBand = npt.NDArray[np.generic]
"""One column as it travels: float64, int64, int8 or int32, NULLs as said above."""

NULL_INT = -(2**63)
NULL_BOOL = 2
NULL_CODE = -1

_DTYPES: dict[str, npt.DTypeLike] = {
    "float": np.float64,
    "int": np.int64,
    "decimal": np.int64,
    "time": np.int64,
    "bool": np.int8,
    "category": np.int32,
}


def dtype_of(type: str) -> npt.DTypeLike:
    """Return the numpy type in which a column of ``type`` travels in-band."""
    return _DTYPES[type.partition("(")[0]]


def nulls(type: str, rows: int) -> InBand:
    """Return ``rows`` NULLs of a column type, in-band."""
    base = type.partition("(")[0]
    null = {"float": np.nan, "bool": NULL_BOOL, "category": NULL_CODE}.get(base, NULL_INT)
    return np.full(rows, null, dtype=_DTYPES[base])


def is_null(type: str, values: InBand) -> npt.NDArray[np.bool_]:
    """Return which of the in-band ``values`` are NULL."""
    mask: npt.NDArray[np.bool_]
    match type.partition("(")[0]:
        case "float":
            mask = np.isnan(values.astype(np.float64, copy=False))
        case "bool":
            mask = values == NULL_BOOL
        case "category":
            mask = values.astype(np.int32, copy=False) < 0
        case _:
            mask = values == NULL_INT
    return mask


class Columns:
    """Rows of one or more series, column by column, ordered by (series, ts) as read.

    ``cols["close"]`` is a read-only numpy array: float64 (NaN is NULL), int64, bool, int32
    codes into ``cols.categories[name]`` (-1 is NULL), scaled int64 for ``decimal(n)``; int,
    decimal and bool come as a ``numpy.ma.MaskedArray`` when they hold NULLs. ``len(cols)``
    counts rows, iterating gives column names. Immutable, so it may be shared by threads.
    """

    __slots__ = (
        "_made",
        "_seq",
        "_series",
        "_ts",
        "_values",
        "categories",
        "names",
        "plan",
        "types",
    )

    def __init__(
        self,
        names: tuple[str, ...],
        series: Codes,
        ts: Instants,
        values: Mapping[str, InBand],
        types: Mapping[str, str],
        categories: Mapping[str, tuple[str, ...]] | None = None,
        seq: npt.NDArray[np.int64] | None = None,
        plan: object = None,
    ) -> None:
        self.names = names
        self.types = types
        self.categories: Mapping[str, tuple[str, ...]] = categories or {}
        self.plan = plan
        self._series = series
        self._ts = ts
        self._values = values
        self._seq = seq
        self._made: dict[str, InBand] = {}

    @classmethod
    def empty(
        cls, types: Mapping[str, str], *, has_seq: bool = False, plan: object = None
    ) -> Columns:
        """Return no rows of the given columns."""
        return cls(
            (),
            np.empty(0, np.int32),
            np.empty(0, np.int64),
            {name: nulls(kind, 0) for name, kind in types.items()},
            types,
            {name: () for name, kind in types.items() if kind == "category"},
            np.empty(0, np.int64) if has_seq else None,
            plan,
        )

    @property
    def ts(self) -> npt.NDArray[np.datetime64]:
        """The instants, as datetime64[us] in UTC."""
        return _read_only(self._ts.view("M8[us]"))

    @property
    def instants(self) -> Instants:
        """The instants, as microseconds since 1970 UTC."""
        return _read_only(self._ts.view())

    @property
    def series(self) -> Codes:
        """Each row's series: a position in ``names``."""
        return _read_only(self._series.view())

    @property
    def seq(self) -> npt.NDArray[np.int64] | None:
        """What tells points of one microsecond apart; None where the key has no seq."""
        return None if self._seq is None else _read_only(self._seq.view())

    def raw(self, name: str) -> InBand:
        """Return a column in-band (see the module), read-only and without a copy."""
        return _read_only(self._of(name).view())

    def __getitem__(self, name: str) -> InBand:
        made = self._made.get(name)
        if made is None:
            made = self._made[name] = self._shown(name)
        return made

    @property
    def nbytes(self) -> int:
        """What its arrays take, in bytes."""
        key = self._series.nbytes + self._ts.nbytes
        key += 0 if self._seq is None else self._seq.nbytes
        return key + sum([values.nbytes for values in self._values.values()])

    def keys(self) -> tuple[str, ...]:
        """Return the value columns' names; ``dict(cols)`` works."""
        return tuple(self._values)

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __contains__(self, name: object) -> bool:
        return name in self._values

    def __len__(self) -> int:
        return len(self._ts)

    def __repr__(self) -> str:
        rows, count = len(self), len(self.names)
        shown = ", ".join(f"{name} {self.types[name]}" for name in self)
        extent = ""
        if rows:
            extent = f", {iso(int(self._ts.min()))} to {iso(int(self._ts.max()))}"
        of = f"{count:,} series" if count != 1 else repr(self.names[0])
        return f"<Columns: {counted(rows, 'rows')} of {of}{extent}; {shown}>"

    def select(self, rows: slice | npt.NDArray[np.bool_] | npt.NDArray[np.integer]) -> Columns:
        """Return the chosen rows; a slice shares memory, a mask or positions copy."""
        return Columns(
            self.names,
            self._series[rows],
            self._ts[rows],
            {name: values[rows] for name, values in self._values.items()},
            self.types,
            self.categories,
            None if self._seq is None else self._seq[rows],
            self.plan,
        )

    @classmethod
    def concat(cls, pieces: Sequence[Columns], *, plan: object = None) -> Columns:
        """Return the rows of all ``pieces``, one after the other, in their order.

        Columns and types must be the same; series names and categories are united.
        """
        if not pieces:
            raise QueryError("nothing to concatenate: give at least one Columns")
        first = pieces[0]
        plan = first.plan if plan is None else plan
        for number, piece in enumerate(pieces[1:], 1):
            _check_same_shape(first, piece, number)
        names, series = unite([(p.names, p._series) for p in pieces])
        values: dict[str, InBand] = {}
        categories: dict[str, tuple[str, ...]] = {}
        for name in first:
            parts = [p._values[name] for p in pieces]
            if first.types[name] == "category":
                categories[name], values[name] = unite(
                    [
                        (p.categories[name], part.astype(np.int32, copy=False))
                        for p, part in zip(pieces, parts, strict=True)
                    ]
                )
            else:
                values[name] = np.concatenate(parts)
        seqs = [p._seq for p in pieces if p._seq is not None]
        return cls(
            names,
            series,
            np.concatenate([p._ts for p in pieces]),
            values,
            first.types,
            categories,
            np.concatenate(seqs) if seqs else None,
            plan,
        )

    def to_pandas(self) -> pd.DataFrame:
        """Return a DataFrame: series, ts (datetime64[us, UTC]), seq if there is one, the columns.

        Series and category columns are Categorical; int and bool become nullable Int64 and
        boolean when they hold NULLs; decimals are exact ``decimal.Decimal`` objects, which
        takes about a microsecond each.
        """
        from toolkit.exports import to_pandas

        return to_pandas(self)

    def to_arrow(self) -> pa.Table:
        """Return an Arrow table; every NULL, NaN too, is an Arrow null.

        ``ts`` is timestamp[us, UTC], series and categories are dictionary<int32, string>,
        decimals decimal128(18, n), or (19, n) where a value is that long.
        """
        from toolkit.exports import to_arrow

        _need("pyarrow", "Columns.to_arrow")
        return to_arrow(self)

    def to_polars(self) -> pl.DataFrame:
        """Return a polars DataFrame of what :meth:`to_arrow` gives."""
        _need("polars", "Columns.to_polars")
        _need("pyarrow", "Columns.to_polars")
        import polars as pl

        frame = pl.from_arrow(self.to_arrow())
        assert isinstance(frame, pl.DataFrame)
        return frame

    def _of(self, name: str) -> InBand:
        try:
            return self._values[name]
        except KeyError:
            raise UnknownName("column", name, self._values) from None

    def _shown(self, name: str) -> InBand:
        values = self._of(name)
        kind = self.types[name]
        if kind in ("float", "category"):
            return _read_only(values.view())
        if kind == "time":
            return _read_only(values.view("M8[us]"))
        mask = is_null(kind, values)
        if not mask.any():
            return _read_only(values.view(np.bool_) if kind == "bool" else values.view())
        data = _read_only(values == 1) if kind == "bool" else _read_only(values.view())
        return np.ma.MaskedArray(data, mask=_read_only(mask), copy=False, shrink=False)


def _read_only(array: npt.NDArray[_T]) -> npt.NDArray[_T]:
    array.flags.writeable = False
    return array


def _need(package: str, purpose: str) -> None:
    try:
        import_module(package)
    except ImportError:
        raise MissingExtra(package, "frames", purpose) from None


def _check_same_shape(first: Columns, other: Columns, number: int) -> None:
    mine, theirs = dict(first.types), dict(other.types)
    if list(first) != list(other) or any(mine[n] != theirs[n] for n in first):
        raise QueryError(
            f"piece {number} has columns {', '.join(f'{n} {theirs[n]}' for n in other)}; "
            f"piece 0 has {', '.join(f'{n} {mine[n]}' for n in first)}"
        )
    if (first.seq is None) != (other.seq is None):
        raise QueryError(f"piece {number} and piece 0 differ: only one of them has seq")


def unite(pieces: Sequence[tuple[tuple[str, ...], Codes]]) -> tuple[tuple[str, ...], Codes]:
    """Return one list of names for pieces that each have their own, and all codes into it."""
    names = pieces[0][0]
    if all(n is names or n == names for n, _ in pieces):
        return names, np.concatenate([codes for _, codes in pieces])
    position: dict[str, int] = {}
    recoded: list[Codes] = []
    for own, codes in pieces:
        # the entry past the last name is what code -1 finds: NULL stays NULL
        table = [position.setdefault(n, len(position)) for n in own] + [NULL_CODE]
        recoded.append(np.array(table, dtype=np.int32)[codes])
    return tuple(position), np.concatenate(recoded)
