"""Which statements only read, as far as can be told without running them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

from sqlalchemy import Select, TextClause
from sqlalchemy.orm import FromStatement
from sqlalchemy.sql.dml import UpdateBase
from sqlalchemy.sql.elements import ColumnClause
from sqlalchemy.sql.functions import FunctionElement
from sqlalchemy.sql.selectable import GenerativeSelect, SelectBase, TableClause, TextualSelect

_BEGINS = {"select", "values", "table", "with", "show"}
_WRITES = {"insert", "update", "delete", "merge", "into", "share"}
# functions of PostgreSQL's own that write, lock, tell others, or are about the session's past
_ACTS = re.compile(
    r"(nextval|next_value|setval|currval|lastval|set_config|txid_current|pg_current_xact_id|"
    r"pg_(try_)?advisory_\w+|pg_notify|pg_(current|switch)_wal\w*|pg_(cancel|terminate)_backend|"
    r"pg_(create|drop|copy|replication|logical|backup|stat_reset|wal_replay|promote|reload)\w*|"
    r"pg_export_snapshot|lo_\w+|dblink\w*)"
)
_QUOTED = re.compile(
    r"""'(?:[^']|'')*' | "((?:[^"]|"")*)" | --[^\n]* | /\*.*?\*/ | \$(\w*)\$.*?\$\2\$""",
    re.DOTALL | re.VERBOSE,
)
_UNSURE = re.compile(r"""['"\\;]|/\*|\*/""")


def is_read(statement: Any) -> bool:
    """Tell a statement that is sure to read only; what is not is taken for a write.

    Functions that are not PostgreSQL's own are taken to read: one that writes is refused by a
    replica, with SQLSTATE 25006.

    >>> from sqlalchemy import column, func, select, text
    >>> is_read(select(column("x"))), is_read(select(column("x")).with_for_update())
    (True, False)
    >>> is_read(text("SELECT 1")), is_read(text("SELECT * FROM x FOR KEY SHARE"))
    (True, False)
    >>> is_read(select(func.pg_advisory_xact_lock(1))), is_read(text("TRUNCATE x"))
    (False, False)
    """
    if isinstance(statement, FromStatement | TextualSelect):
        return is_read(statement.element)
    if isinstance(statement, TextClause):
        return is_read_text(statement.text)
    if not isinstance(statement, SelectBase | FunctionElement):
        return False
    return all(map(_only_reads, _parts(statement)))


def _parts(statement: Any) -> Iterator[Any]:
    """Yield what a statement is made of; a column's table is not looked into time and again."""
    found = [statement]
    while found:
        part = found.pop()
        yield part
        if not isinstance(part, ColumnClause | TableClause):
            found.extend(part.get_children())


def _only_reads(part: Any) -> bool:
    if isinstance(part, GenerativeSelect) and part._for_update_arg is not None:
        return False
    if isinstance(part, Select):
        # text before or after a SELECT is not among its parts
        return not (part._prefixes or part._suffixes or part._statement_hints)
    if isinstance(part, FunctionElement):
        return not _ACTS.fullmatch(str(getattr(part, "name", "")).lower())
    if isinstance(part, TextClause):
        return _says_no_write(part.text)
    if isinstance(part, ColumnClause) and part.is_literal:
        return _says_no_write(part.name)
    return not isinstance(part, UpdateBase)


@lru_cache(256)
def is_read_text(text: str) -> bool:
    """Tell SQL that is sure to be one statement that reads only.

    >>> is_read_text("SELECT 'DELETE' -- that"), is_read_text("SELECT 1; DROP TABLE x")
    (True, False)
    >>> is_read_text("WITH gone AS (DELETE FROM x RETURNING *) SELECT * FROM gone")
    False
    """
    words = _words(text)
    return words[:1] != [] and words[0] in _BEGINS and _says_no_write(text)


@lru_cache(256)
def _says_no_write(text: str) -> bool:
    words = _words(text)
    return words != [""] and not any(w in _WRITES or _ACTS.fullmatch(w) for w in words)


def _words(text: str) -> list[str]:
    """Return the words outside of quotes and comments; [""] if it is not sure which those are."""
    bare = _QUOTED.sub(lambda found: f" {found[1] or ''} ", text).strip().removesuffix(";")
    if "\\" in text or _UNSURE.search(bare):
        return [""]
    return re.findall(r"\w+", bare.lower())
