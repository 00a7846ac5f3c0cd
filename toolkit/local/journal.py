"""The servers' logs: kept short, and their end shown in an error's text."""

from __future__ import annotations

from pathlib import Path

_BYTES = 16_384
_ROTATE_BYTES = 16 << 20


def size_of(path: Path) -> int:
    """The size of a log, to be handed to `tail` later; 0 where there is none."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def tail(path: Path, since: int = 0, lines: int = 20) -> str:
    """The last lines written after offset ``since``."""
    try:
        with path.open("rb") as file:
            file.seek(max(since, size_of(path) - _BYTES))
            text = file.read(_BYTES).decode("utf-8", "replace")
    except FileNotFoundError:
        return ""
    return "\n".join(text.splitlines()[-lines:])


def rotate(path: Path) -> None:
    """Before a start: put a log that has grown long aside; one old log is kept."""
    if size_of(path) > _ROTATE_BYTES:
        path.replace(path.with_suffix(".old"))
