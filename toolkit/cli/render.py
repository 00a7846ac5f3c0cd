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
    from rich.progress import Progress
    from rich.table import Table

_MAX_CELL = 48
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
) -> None:
    """Print a table; the columns in ``numbers`` are aligned to the right."""
    from rich.console import Console

    table = table_of(headers, rows, numbers=numbers, cell=cell)
    is_tty = sys.stdout.isatty()
    console = Console(width=None if is_tty else _WIDE, markup=False, emoji=False, highlight=False)
    with console.capture() as captured:  # print() would end the program where a pipe is closed
        console.print(table)
    click.echo(captured.get(), nl=False)


def table_of(
    headers: Sequence[str],
    rows: Iterable[Sequence[object]],
    *,
    numbers: Iterable[str] = (),
    cell: int = _MAX_CELL,
) -> Table:
    """Return what :func:`echo_table` prints."""
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
