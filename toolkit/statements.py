"""SQL by name: one statement a file under ``sql/``, its identifiers and parts filled in here."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from importlib.resources import files
from pathlib import Path

from psycopg.sql import SQL, Composable, Composed, Identifier, Literal

Part = Composable
"""A piece of SQL that is safe to put into a statement: never text from outside."""

_PLACE = re.compile(r"%(?:%|\((\w+)\)[sb])")


@lru_cache(maxsize=1)
def _folder() -> Path:
    installed = Path(str(files("toolkit") / "_sql"))
    return installed if installed.is_dir() else Path(__file__).resolve().parent.parent / "sql"


@lru_cache(maxsize=256)
def _load(name: str) -> SQL:
    lines = (_folder() / f"{name}.sql").read_text("utf-8").splitlines()
    kept = "\n".join(line for line in lines if not line.lstrip().startswith("--"))
    return SQL(kept.strip())


def compose(name: str, **parts: Part) -> bytes:
    """Return the statement ``sql/<name>.sql`` with ``{part}`` filled in, ready to send."""
    return part(name, **parts).as_bytes(None)


def part(name: str, **parts: Part) -> Composed:
    """Return the statement as a piece of another."""
    return _load(name).format(**parts)


def filled(statement: bytes, params: Mapping[str, object]) -> str:
    """Return a statement with its values in it, to be shown and never sent.

    Those that are not known yet are $1, $2 and so on, as the server is sent them.

    >>> filled(b"SELECT %(a)s, %(b)s, 7 %% 4, %(b)s", {"a": "it's"})
    "SELECT 'it''s', $1, 7 % 4, $1"
    >>> filled(b"SELECT %(a)s, 1-%(a)s", {"a": -5})
    'SELECT -5, 1- -5'
    """
    unknown: dict[str, str] = {}

    def value(place: re.Match[str]) -> str:
        key = place[1]
        if key is None:
            return "%"
        if key in params:
            text = Literal(params[key]).as_string(None)  # a space before what is negative:
            before = place.string[: place.start()][-1:]
            return text.strip() if before in " \n(,[" else text  # 1--5 would be a comment
        return unknown.setdefault(key, f"${len(unknown) + 1}")

    return _PLACE.sub(value, statement.decode())


def name(*parts: str) -> Identifier:
    """Return a quoted, qualified identifier."""
    return Identifier(*parts)


def raw(text: str) -> SQL:
    """Return SQL that this program wrote itself."""
    return SQL(text)


def commas(parts: list[Part] | list[Composed]) -> Composed:
    """Join parts by commas."""
    return SQL(", ").join(parts)


NOTHING = SQL("")
