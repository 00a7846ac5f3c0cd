"""What is handed over to be stored: any frame, checked against its dataset, as one batch."""

from __future__ import annotations

from collections.abc import Collection, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

from toolkit.columns import NULL_INT, Codes, InBand, nulls
from toolkit.errors import InputError, shorten
from toolkit.ingest.coerce import coerce, name_problem, refuse, to_int, to_series
from toolkit.ingest.moments import to_instants
from toolkit.ingest.sources import Frame, open_frame, plain
from toolkit.timegrid import Instants

if TYPE_CHECKING:
    from toolkit.dataset import Dataset

Numbering = MutableMapping[str, tuple[int, int]]
"""Per series name: the last instant that was numbered, and the next seq there."""


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """Points of a dataset, checked, in-band (see :mod:`toolkit.columns`).

    ``series`` holds codes into ``names``; ``values`` has every column of the dataset, in its
    order; ``given`` names those that the frame had (None: all), the others are NULL and leave
    alone what an upsert finds. Float columns may share memory with the frame they came from.
    """

    dataset: Dataset
    names: tuple[str, ...]
    series: Codes
    ts: Instants
    seq: npt.NDArray[np.int64] | None
    values: Mapping[str, InBand]
    categories: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    given: tuple[str, ...] | None = None

    def __len__(self) -> int:
        return len(self.ts)

    def take(self, rows: slice | npt.NDArray[np.bool_] | npt.NDArray[np.intp]) -> Batch:
        """Return the chosen rows; a slice shares memory."""
        return replace(
            self,
            series=self.series[rows],
            ts=self.ts[rows],
            seq=None if self.seq is None else self.seq[rows],
            values={name: values[rows] for name, values in self.values.items()},
        )


class Arranged(NamedTuple):
    """A batch in key order without equal keys, and how many rows an equal key replaced."""

    batch: Batch
    duplicates: int


class Runs(NamedTuple):
    """Ranges of time [lo, hi) of the series with ``code``, one entry each."""

    code: Codes
    lo: Instants
    hi: Instants


def to_batch(
    dataset: Dataset,
    frame: object,
    *,
    series: str | None = None,
    mapping: Mapping[str, str | None] | None = None,
    tz: str | None = None,
    time_unit: str | None = None,
) -> Batch:
    """Check a frame against its dataset and return its rows, in the frame's order.

    ``frame`` is a pandas or polars DataFrame, a pyarrow Table or RecordBatch, Columns, or a
    dict of arrays or lists, with ``ts``, ``series`` (unless given), perhaps ``seq``, and the
    dataset's columns; one that is not there is NULL in a new row and left as it is in a row that
    exists. ``mapping`` renames the frame's
    columns; those mapped to None are left out. ``tz`` is the zone of times that carry none
    (numpy's in a dict are UTC unless it is given); ``time_unit`` says what integers in ``ts``
    count. Row numbers in errors count from 0. Numeric columns cost no work per row in Python.
    """
    opened = open_frame(frame)
    columns = _pick(dataset, opened, mapping or {}, series)
    if series is not None and name_problem(series):
        raise InputError(f"series name {shorten(series)} {name_problem(series)}")
    if opened.rows == 0:
        return _empty(dataset)
    ts = to_instants(plain(columns["ts"], _place("ts")), _place("ts"), tz=tz, time_unit=time_unit)
    if series is None:
        codes, names = to_series(plain(columns["series"], _place("series")), _place("series"))
    else:
        codes, names = np.zeros(opened.rows, dtype=np.int32), (series,)
    seq = None
    if "seq" in columns:
        seq = to_int(plain(columns["seq"], _place("seq")), _place("seq"))
        if (seq == NULL_INT).any():
            refuse(_place("seq"), seq == NULL_INT, None, "there is no seq")
    given = tuple(c for c in dataset.names if c in columns)
    values: dict[str, InBand] = {}
    categories: dict[str, tuple[str, ...]] = {}
    for column in dataset.columns:
        found: tuple[str, ...] = ()
        if column.name in columns:
            place = _place(column.name)
            form = plain(columns[column.name], place)
            values[column.name], found = coerce(form, column.type, place)
        else:
            values[column.name] = nulls(column.type, opened.rows)
        if column.base == "category":
            categories[column.name] = found
    is_whole = len(given) == len(dataset.names)
    return Batch(dataset, names, codes, ts, seq, values, categories, None if is_whole else given)


def arrange(batch: Batch, numbering: Numbering | None = None) -> Arranged:
    """Order rows by key and keep the last, in the frame's order, of those with an equal key.

    Where the dataset's key has ``seq`` and the frame had none, a series' points of one
    microsecond are numbered 0, 1, 2, … in the frame's order. ``numbering`` carries the count
    from one chunk of an iterator to the next, so that a microsecond split over two chunks
    counts on; chunks are taken to follow each other in time.
    """
    if batch.dataset.has_seq and batch.seq is None:
        batch = _sorted(batch)
        return Arranged(replace(batch, seq=_numbered(batch, numbering)), 0)
    if not len(batch):
        return Arranged(batch, 0)
    batch = _sorted(batch)
    is_last = np.ones(len(batch), dtype=np.bool_)
    is_last[:-1] = (batch.ts[1:] != batch.ts[:-1]) | (batch.series[1:] != batch.series[:-1])
    if batch.seq is not None:
        is_last[:-1] |= batch.seq[1:] != batch.seq[:-1]
    duplicates = len(batch) - int(np.count_nonzero(is_last))
    return Arranged(batch.take(is_last) if duplicates else batch, duplicates)


def runs(batch: Batch, step_us: int, cell_us: int) -> Runs:
    """Return the steps that an arranged batch touches, as runs of adjacent ones per series.

    Steps are counted from 1970 UTC; runs are cut at multiples of ``cell_us``, itself a
    multiple of ``step_us``.
    """
    if step_us < 1 or cell_us % step_us:
        raise ValueError(f"a cell of {cell_us} us is no multiple of a step of {step_us} us")
    if not len(batch):
        none = np.empty(0, dtype=np.int64)
        return Runs(np.empty(0, dtype=np.int32), none, none)
    step = batch.ts // step_us
    follows = (batch.series[1:] == batch.series[:-1]) & (step[1:] - step[:-1] <= 1)
    follows &= (step[1:] == step[:-1]) | (step[1:] % (cell_us // step_us) != 0)
    first = np.flatnonzero(np.concatenate([[True], ~follows]))
    last = np.concatenate([first[1:], [len(batch)]]) - 1
    return Runs(batch.series[first], step[first] * step_us, (step[last] + 1) * step_us)


def _place(name: str) -> str:
    return f"column {name!r}"


def _empty(dataset: Dataset) -> Batch:
    return Batch(
        dataset,
        (),
        np.empty(0, dtype=np.int32),
        np.empty(0, dtype=np.int64),
        np.empty(0, dtype=np.int64) if dataset.has_seq else None,
        {c.name: nulls(c.type, 0) for c in dataset.columns},
        {c.name: () for c in dataset.columns if c.base == "category"},
    )


def _pick(
    dataset: Dataset, frame: Frame, mapping: Mapping[str, str | None], series: str | None
) -> dict[str, object]:
    """Return the frame's columns under the dataset's names, or say what does not fit."""
    known = ["series", "ts", *(["seq"] if dataset.has_seq else []), *dataset.names]
    present = [name for name, _ in (*frame.columns, *frame.index)]
    for source, target in mapping.items():
        if source not in present:
            raise InputError(f"mapping: the frame has no column {source!r}{_near(source, present)}")
        if target is not None and target not in known:
            raise InputError(
                f"mapping: dataset {dataset.name!r} has no column {target!r}{_near(target, known)}"
            )
    found: dict[str, object] = {}
    extra: list[str] = []
    for name, column in frame.columns:
        target = mapping.get(name, name)
        if target is None:
            continue
        if target in found:
            raise InputError(f"the frame has more than one column {target!r}; keep one of them")
        if target in known:
            found[target] = column
        else:
            extra.append(name)
    if extra:
        _refuse_extra(dataset, extra, known, found)
    _add_index(frame, mapping, known, found)
    if series is not None and "series" in found:
        raise InputError(
            f"the frame has a column 'series', and series={series!r} was given; give one of them"
        )
    if not frame.columns and not frame.rows:
        return found
    for name in ("ts",) if series is not None else ("ts", "series"):
        if name not in found:
            hint = ", or give series= for all rows" if name == "series" else ""
            raise InputError(
                f"the {frame.kind} has no column {name!r}; it has "
                f"{', '.join(map(repr, present)) or 'none'}. Rename one with "
                f"mapping={{'…': {name!r}}}{hint}"
            )
    return found


def _add_index(
    frame: Frame,
    mapping: Mapping[str, str | None],
    known: Collection[str],
    found: dict[str, object],
) -> None:
    """Let index levels stand in for key columns; a lone unnamed DatetimeIndex is ts."""
    for name, level in frame.index:
        target = mapping.get(name, name or "ts")
        if target is not None and target in known and target not in found:
            found[target] = level
    if "ts" not in found and len(frame.index) == 1:
        name, level = frame.index[0]
        if type(level).__name__ == "DatetimeIndex" and mapping.get(name, "ts") == "ts":
            found["ts"] = level


def _refuse_extra(
    dataset: Dataset, extra: Sequence[str], known: Sequence[str], found: Collection[str]
) -> None:
    if extra[0] == "seq":
        raise InputError(
            f"dataset {dataset.name!r} has no 'seq' in its key; leave the column out "
            "with mapping={'seq': None}"
        )
    free = [name for name in known if name not in found]
    shown = ", ".join(f"{shorten(n)}{_near(n, free)}" for n in extra[:5])
    more = f" and {len(extra) - 5} more" if len(extra) > 5 else ""
    raise InputError(
        f"dataset {dataset.name!r} has no column {shown}{more}; rename it with "
        f"mapping={{{extra[0]!r}: '…'}}, or leave it out with mapping={{{extra[0]!r}: None}}"
    )


def _near(name: str, known: Sequence[str]) -> str:
    near = get_close_matches(name.lower(), known, n=1, cutoff=0.5)
    return f" (did you mean {near[0]!r}?)" if near else ""


def _sorted(batch: Batch) -> Batch:
    """Sort stably by (series, ts, seq); rows that are in order already are not touched."""
    codes, ts, seq = batch.series, batch.ts, batch.seq
    later = ts[1:] > ts[:-1]
    same = ts[1:] == ts[:-1]
    later |= same if seq is None else same & (seq[1:] >= seq[:-1])
    one_series = len(batch.names) == 1
    in_order = (
        later if one_series else (codes[1:] > codes[:-1]) | ((codes[1:] == codes[:-1]) & later)
    )
    if in_order.all():
        return batch
    if seq is not None:
        order = np.lexsort((seq, ts))
    elif later.all():
        order = np.arange(len(batch))
    else:
        order = np.argsort(ts, kind="stable")
    if not one_series:
        # 16-bit keys are sorted by radix, several times faster
        small = codes.astype(np.uint16) if len(batch.names) <= 2**16 else codes
        order = order[np.argsort(small[order], kind="stable")]
    return batch.take(order)


def _numbered(batch: Batch, numbering: Numbering | None) -> npt.NDArray[np.int64]:
    rows = np.arange(len(batch), dtype=np.int64)
    is_first = np.ones(len(batch), dtype=np.bool_)
    is_first[1:] = (batch.ts[1:] != batch.ts[:-1]) | (batch.series[1:] != batch.series[:-1])
    seq: npt.NDArray[np.int64] = rows - np.maximum.accumulate(np.where(is_first, rows, 0))
    if numbering is None:
        return seq
    starts = np.flatnonzero(np.diff(batch.series, prepend=-1))
    for start, end in zip(starts, [*starts[1:], len(batch)], strict=True):
        name = batch.names[int(batch.series[start])]
        ts = batch.ts[start:end]
        if name in numbering:
            last, following = numbering[name]
            low, high = np.searchsorted(ts, [last, last + 1])
            seq[start + low : start + high] += following
            if last > ts[-1]:
                continue
        numbering[name] = (int(ts[-1]), int(seq[end - 1]) + 1)
    return seq
