"""What commands print: tables for people, JSON for programs, and a word on what is going on."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress
    from rich.table import Table

_MAX_CELL = 48
_LEAST = 24  # a column of words is no narrower
_WIDE = 4_000  # a pipe has no width: nothing is folded there


def echo_json(value: object) -> None:
    """Print a value as JSON, indented."""
    click.echo(json.dumps(plain(value), indent=2, ensure_ascii=False, allow_nan=False))


def plain(value: object) -> Any:
    """Return what JSON can say of a value.

    Not a number becomes null, an infinity the text "Infinity" or "-Infinity", a decimal its
    exact text, a time ISO 8601 in UTC.

    >>> plain({"a": float("nan"), "b": (1, float("-inf")), "c": Decimal("1.50")})
    {'a': None, 'b': [1, '-Infinity'], 'c': '1.50'}
    """
    if isinstance(value, float):
        if math.isfinite(value):
            return float(value)
        return None if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(v) for v in value]
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat().replace("+00:00", "Z")
    if value is None or isinstance(value, str | int):
        return value
    if isinstance(value, Decimal | date | Path | Exception):
        return str(value)
    raise TypeError(f"no JSON for a {type(value).__name__}")


def echo_table(
    headers: Sequence[str],
    rows: Iterable[Sequence[object]],
    *,
    numbers: Iterable[str] = (),
    cell: int = _MAX_CELL,
    words: Iterable[str] | None = None,
) -> None:
    """Print a table; the columns in ``numbers`` are aligned to the right.

    A cell that is too wide for the terminal is folded. Not so with ``words``: the columns in it
    are broken between words, and no other is. Where that is too wide still, the last columns
    follow in a table of their own, in which the first stands again.
    """
    from rich.console import Console

    console = Console(width=_width(), markup=False, emoji=False, highlight=False)
    given = list(rows)
    if words is None:
        tables = [table_of(headers, given, numbers=numbers, cell=cell)]
    else:
        tables = _fitting(console, headers, given, set(numbers), cell, set(words))
    for number, table in enumerate(tables):
        if number:
            click.echo()
        with console.capture() as captured:  # print() would end the program where a pipe is closed
            console.print(table)
        click.echo(captured.get(), nl=False)


def _width(*, err: bool = False) -> int | None:
    """Return the width to print in; None: the terminal's."""
    return None if (sys.stderr if err else sys.stdout).isatty() else _WIDE


def _fitting(
    console: Console,
    headers: Sequence[str],
    rows: Sequence[Sequence[object]],
    numbers: set[str],
    cell: int,
    words: set[str],
) -> list[Table]:
    """Return the tables in which no cell is broken: one, where the console is wide enough.

    Where not even two columns fit, cells are folded.
    """
    from rich.cells import cell_len

    unbounded = console.options.update(width=_WIDE)

    def of(chosen: Sequence[int], *, is_narrow: bool) -> Table:
        some = [[row[c] for c in chosen] for row in rows]
        names = [headers[c] for c in chosen]
        table = table_of(names, some, numbers=numbers, cell=cell)
        table.collapse_padding, table.show_edge = is_narrow, not is_narrow
        for column, name in zip(table.columns, names, strict=True):
            column.no_wrap = name not in words
            if is_narrow:
                column.header = name.replace(" ", "\n")
                column.vertical = "bottom" if column.no_wrap else "top"
            texts = [str(column.header), *map(str, column.cells)]
            widest = max(cell_len(line) for text in texts for line in text.split("\n"))
            column.min_width = widest if column.no_wrap else min(widest, _LEAST)
        return table

    def is_fit(table: Table) -> bool:
        return console.measure(table, options=unbounded).minimum <= console.width

    table = of(range(len(headers)), is_narrow=False)
    if is_fit(table):
        return [table]
    tables: list[Table] = []
    begin = 1
    while begin < len(headers) or not tables:
        end = len(headers)
        while True:
            table = of([0, *range(begin, end)], is_narrow=True)
            if end <= begin + 1 or is_fit(table):
                break
            end -= 1
        if not is_fit(table):
            for column in table.columns:
                column.no_wrap, column.min_width = False, None
        tables.append(table)
        begin = end
    return tables


def table_of(
    headers: Sequence[str],
    rows: Iterable[Sequence[object]],
    *,
    numbers: Iterable[str] = (),
    cell: int = _MAX_CELL,
) -> Table:
    """Return what :func:`echo_table` prints where all fits."""
    from rich import box
    from rich.table import Table

    right = set(numbers)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold")
    for header in headers:
        justify: Literal["right", "left"] = "right" if header in right else "left"
        is_time = header.startswith("ts (")
        table.add_column(header, justify=justify, overflow="fold", no_wrap=is_time)
    for row in rows:
        table.add_row(*(shown(value, cell) for value in row))
    return table


def echo_words(text: str, *, first: str = "", then: str = "  ", err: bool = False) -> None:
    """Print a sentence, on a terminal in lines that end between words; ``then`` begins the next."""
    from textwrap import fill

    from rich.console import Console

    width = _width(err=err) or Console(stderr=err).width
    filled = fill(
        shown(text, _WIDE),
        width,
        initial_indent=first,
        subsequent_indent=then,
        break_long_words=False,
        break_on_hyphens=False,
    )
    click.echo(filled, err=err)


def echo_line(text: str) -> None:
    """Print text as it is, but for what a terminal would obey."""
    click.echo("\n".join(shown(line, _WIDE) for line in text.split("\n")))


def shown(value: object, limit: int = _MAX_CELL) -> str:
    """Return a value as one table cell; what a terminal would obey is escaped.

    >>> shown("a\\x1b[2Jb"), shown(None), shown(1234567), shown("x" * 60, 9)
    ('a\\\\x1b[2Jb', '', '1,234,567', 'xxxx…xxxx')
    """
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat(sep=" ", timespec="seconds")[:19] + "Z"
    if isinstance(value, Mapping):
        value = ", ".join(f"{k}={v}" for k, v in value.items())
    text = "".join(c if c.isprintable() else _escaped(c) for c in str(value))
    half = (limit - 1) // 2
    return text if len(text) <= limit else f"{text[:half]}…{text[-half:]}"


def _escaped(character: str) -> str:
    # parts of emoji are not printable by themselves, and harm nobody
    return (
        character
        if character in "\u200d\ufe0f"
        else character.encode("unicode_escape", "surrogatepass").decode()
    )


def ago(moment: datetime, now: datetime) -> str:
    """Return how long ago a moment was, or in how long it is; a day and more away its date.

    >>> from datetime import timedelta
    >>> now = datetime(2026, 1, 31, 12, tzinfo=UTC)
    >>> [ago(now - timedelta(seconds=s), now) for s in (90, 2, -7_200, 86_400)]
    ['1 min ago', '2 s ago', 'in 2 h', '2026-01-30']
    """
    seconds = (now - moment).total_seconds()
    if abs(seconds) >= 86_400:
        return f"{moment.astimezone(UTC):%Y-%m-%d}"
    size, unit = next(
        (s, u) for s, u in ((3600, "h"), (60, "min"), (1, "s")) if s <= abs(seconds) or s == 1
    )
    count = f"{int(abs(seconds) / size)} {unit}"
    return f"{count} ago" if seconds >= 0 else f"in {count}"


def lasting(seconds: float) -> str:
    """Return a length of time in few letters.

    >>> lasting(0.04), lasting(59.96), lasting(5_400), lasting(400_000)
    ('0.0 s', '60.0 s', '90 min', '111 h')
    """
    if seconds < 100:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6_000 else f"{seconds / 3600:,.0f} h"


def sized(count: int) -> str:
    """Return bytes for a reader.

    >>> sized(0), sized(123_456_789)
    ('0 B', '117.7 MB')
    """
    size = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TB"


def note(text: str) -> None:
    """Print a remark to standard error, out of the way of what is piped."""
    click.echo(text, err=True)


def confirmed(question: str, *, is_sure: bool) -> None:
    """Go on if the user says yes, or said so with --yes."""
    from toolkit.cli.failing import Failure

    if is_sure:
        return
    try:
        said = click.confirm(question, err=True)
    except click.Abort:
        raise Failure("nothing was done: give --yes where nobody can be asked") from None
    if not said:
        raise Failure("nothing was done")


@contextmanager
def working(text: str) -> Iterator[Callable[[str], None]]:
    """Show that something goes on, and what, on a terminal only; yields what changes the text."""
    from rich.console import Console
    from rich.text import Text

    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda _: None
        return
    with console.status(Text(text)) as status:
        yield lambda said: status.update(Text(said))


@contextmanager
def bars() -> Iterator[Progress]:
    """Show progress bars on standard error, on a terminal only."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    with Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.fields[said]}", markup=False),
        TimeElapsedColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    ) as progress:
        yield progress
