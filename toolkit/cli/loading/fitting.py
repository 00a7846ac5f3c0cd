"""Decides which column of a file is which column of a dataset."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches

from toolkit.dataset import Dataset
from toolkit.errors import InputError, QueryError, shorten

TIME_NAMES = ("timestamp", "time", "date", "datetime")
_INDEX = "__index_level_0__"  # pandas writes an index without a name so


@dataclass(frozen=True, slots=True)
class Wish:
    """What the user said of the columns: ``given`` is dataset column → file column."""

    given: Mapping[str, str]
    left_out: frozenset[str] = frozenset()
    ignores_extra: bool = False
    series: str | None = None


@dataclass(frozen=True, slots=True)
class Fit:
    """File column → dataset column, and what was decided without being asked."""

    columns: Mapping[str, str]
    notes: tuple[str, ...] = ()


def read_wish(
    maps: Sequence[str], *, ignores_extra: bool = False, series: str | None = None
) -> Wish:
    """Read ``--map`` values: ``close=last_price`` renames, ``-id`` leaves a file column out.

    >>> wish = read_wish(["close=last price", "-id"])
    >>> wish.given, wish.left_out
    ({'close': 'last price'}, frozenset({'id'}))
    """
    given: dict[str, str] = {}
    left_out = set()
    for text in maps:
        target, equals, source = text.partition("=")
        if text.startswith("-") and len(text) > 1:
            left_out.add(text[1:])
        elif not equals or not target or not source:
            raise QueryError(
                f"--map {text!r}: write COLUMN=FILECOLUMN, or -FILECOLUMN to leave one out"
            )
        elif target in given:
            raise QueryError(f"--map: column {target!r} is given twice")
        else:
            given[target] = source
    return Wish(given, frozenset(left_out), ignores_extra, series)


def fit(dataset: Dataset, names: Sequence[str], wish: Wish) -> Fit:
    """Match a file's columns with a dataset's, or say what does not fit and what to do.

    A column is taken under its own name, else in lower case; where none is called ts, a lone
    one called timestamp, time, date or datetime is.
    """
    known = ["series", "ts", *(["seq"] if dataset.has_seq else []), *dataset.names]
    _check(dataset, names, known, wish)
    taken = {source: target for target, source in wish.given.items()}
    free = [n for n in names if n not in taken and n not in wish.left_out]
    notes: list[str] = []
    for match in (str, str.lower):
        for name in list(free):
            target = match(name)
            if target in known and target not in taken.values():
                taken[name] = target
                free.remove(name)
                if target != name:
                    notes.append(f"column {name!r} is taken as {target}")
    if "ts" not in taken.values():
        found = [n for n in free if n.lower() in TIME_NAMES] or [n for n in free if n == _INDEX]
        if len(found) == 1:
            taken[found[0]] = "ts"
            free.remove(found[0])
            notes.append(f"column {found[0]!r} is taken as ts")
    _check_key(names, taken, wish)
    extra = [n for n in free if n not in (_INDEX, "")]
    if extra and not wish.ignores_extra:
        raise InputError(_refusal(dataset, extra, [k for k in known if k not in taken.values()]))
    if extra:
        notes.append(f"left out: {', '.join(map(repr, extra))}")
    absent = [c for c in dataset.names if c not in taken.values()]
    if len(absent) == len(dataset.names):
        raise InputError(f"no column is one of {', '.join(dataset.names)}; name one with --map")
    if absent:
        notes.append(f"not in the file, stored as NULL: {', '.join(absent)}")
    return Fit(taken, tuple(notes))


def _check(dataset: Dataset, names: Sequence[str], known: Collection[str], wish: Wish) -> None:
    for target, source in wish.given.items():
        if target not in known:
            raise InputError(
                f"--map: dataset {dataset.name!r} has no column {shorten(target)}"
                f"{_near(target, known)}; it has {', '.join(known)}"
            )
        if source not in names:
            raise InputError(f"--map: no column {shorten(source)}{_near(source, names)}")
    for name in sorted(wish.left_out):
        if name not in names:
            raise InputError(f"--map -{name}: no column {shorten(name)}{_near(name, names)}")
    sources = list(wish.given.values())
    for name in sources:
        if sources.count(name) > 1 or name in wish.left_out:
            raise InputError(f"--map: column {name!r} of the file is named twice")


def _check_key(names: Sequence[str], taken: Mapping[str, str], wish: Wish) -> None:
    has = ", ".join(shorten(n) for n in names[:12]) + (", …" if len(names) > 12 else "")
    if "ts" not in taken.values():
        delimiter = next((d for d in ";\t|" if len(names) == 1 and d in names[0]), None)
        hint = f"; or is it --delimiter {delimiter!r}?" if delimiter else ""
        raise InputError(f"no column 'ts'; name it with --map ts=COLUMN{hint}. It has {has}")
    source = next((s for s, t in taken.items() if t == "series"), None)
    if wish.series is None and source is None:
        raise InputError(
            "no column 'series'; give --series NAME for all rows, or --map series=COLUMN. "
            f"It has {has}"
        )
    if wish.series is not None and source is not None:
        raise InputError(
            f"--series was given, and there is a column {source!r}; "
            f"leave it out with --map -{source}"
        )


def _refusal(dataset: Dataset, extra: Sequence[str], free: Sequence[str]) -> str:
    shown = ", ".join(f"{shorten(n)}{_near(n, free)}" for n in extra[:5])
    more = f" and {len(extra) - 5} more" if len(extra) > 5 else ""
    first = extra[0] if len(extra[0]) <= 60 else "COLUMN"
    return (
        f"dataset {dataset.name!r} has no column {shown}{more}; leave it out with --map '-{first}' "
        f"(all of them: --ignore-extra), or say what it is with --map 'COLUMN={first}'"
    )


def _near(name: str, known: Collection[str]) -> str:
    near = get_close_matches(name.lower(), list(known), n=1, cutoff=0.5)
    return f" (did you mean {near[0]!r}?)" if near else ""
