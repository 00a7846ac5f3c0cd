"""How much larger indexes are than they would be made afresh: estimated, then measured."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from toolkit.errors import DatabaseError
from toolkit.statements import Part, commas, compose, name
from toolkit.timegrid import Span
from toolkit_maintenance.ground import Ground
from toolkit_maintenance.tables import is_closed, span_of

_PAGE = 8192
_USABLE = _PAGE - 24 - 16  # without the page's header and the index's own words
_TUPLE = 8 + 4  # an index tuple's header, and its line pointer
_TID = 6
_POSTINGS = 200  # rows that one key is kept for at most; nbtree.h, BTMaxItemSize / 2
_SAMPLED = 500  # pages of a table
_WHOLE = 1 << 30  # bytes of an index that are read to the last; of larger ones a sample is cheaper
_LONGEST = 300.0  # seconds to read it in
JUDGED = ("btree", "gin")

WORTH = 1 << 20  # bytes to gain
# what is left of the size: a closed partition is made anew once; in others pages fill up again
CLOSED, OPEN = 0.7, 0.5
DOUBT = 0.15  # by how much an estimate may be wrong


@dataclass(frozen=True, slots=True)
class Index:
    """An index as the catalog knows it; see ``reindex/list_indexes``."""

    oid: int
    name: str
    parent: str | None
    table_oid: int
    table: str
    table_parent: str | None
    span: Span | None
    method: str
    is_parent: bool
    is_valid: bool
    unattached: int
    bytes: int
    table_pages: int
    fillfactor: int
    rows: float
    width: float | None
    nulls: float | None
    keys: float | None
    is_ours: bool
    is_plain: bool

    @classmethod
    def from_row(cls, row: Sequence[Any]) -> Index:
        """Build from a row of ``reindex/list_indexes``."""
        return cls(*row[:6], span_of(row[4], row[6]), *row[7:])  # type: ignore[call-arg]  # as the statement has them

    @property
    def estimate(self) -> int | None:
        """Bytes it would take afresh by the statistics; None where they do not say.

        Right to a few percent for a plain key. What the values of a partial index or of an
        expression are like is a guess, and so is how many keys are equal: so it is only what
        says which index to measure.
        """
        alike = 1.0
        if self.keys is not None:
            alike = min(max(self.rows / max(self.keys, 1), 1), _POSTINGS)
        return self._afresh(alike)

    @property
    def most(self) -> int | None:
        """Bytes it would take afresh at most, by what is no guess; None where that is not known."""
        return self._afresh(1.0) if self.is_plain else None

    def _afresh(self, alike: float) -> int | None:
        if self.method != "btree":
            return None
        if not self.table_pages:  # emptied and vacuumed: there is no row to keep
            return _PAGE
        if self.width is None or self.rows <= 0:
            return None
        has_nulls = 8 if self.nulls else 0
        row = float(_TUPLE + has_nulls + math.ceil(self.width / 8) * 8)
        row = row if alike < 2 else _TID + row / alike
        leaves = self.rows * row / (_USABLE * self.fillfactor / 100)
        return int(_PAGE * (1 + math.ceil(leaves * 1.01)))

    def limit(self, now: datetime) -> float:
        """Return the share of its size below which what is left is worth making it anew."""
        return CLOSED if is_closed(self.span, now) else OPEN

    def is_surely_bloated(self, now: datetime) -> bool:
        """Whether the job would make it anew, however wrong the statistics are within reason."""
        if self.most is None or not self.is_valid or self.is_parent:
            return False
        is_worth = self.bytes - self.most >= WORTH
        return is_worth and self.most < self.bytes * (self.limit(now) - DOUBT)


def list_indexes(ground: Ground) -> list[Index]:
    """Return the indexes of the schema."""
    params = {"schema": ground.schema, "least": 0}
    rows = ground.direct.fetch(compose("reindex/list_indexes"), params)
    return [Index.from_row(r) for r in rows]


class Measure:
    """Measures indexes, by the extension pgstattuple where it may be used, else by a sample.

    A sample is a temporary table with the same indexes and some pages' rows, so it knows what
    any key is like, and how full its pages can be at best; but equal keys that lie far apart
    it does not see, and takes a fresh index for larger than it is. For one thread.
    """

    def __init__(self, ground: Ground) -> None:
        self._ground = ground
        found = ground.direct.fetch(compose("reindex/find_pgstatindex"))
        self._schema = str(found[0][0]) if found else None
        self._sampled: dict[int, Mapping[int, int] | str] = {}

    def fresh(self, index: Index) -> int | str:
        """Return the bytes an index would take afresh, or in words why nobody can tell."""
        if index.method == "btree" and self._schema is not None and index.bytes <= _WHOLE:
            return self._by_density(index, self._schema)
        if index.method not in JUDGED:
            return f"how large an index of the kind {index.method} should be is not known"
        if index.table_oid not in self._sampled:
            self._sampled = {index.table_oid: self._by_sample(index)}
        sizes = self._sampled[index.table_oid]
        if isinstance(sizes, str):
            return sizes
        return sizes.get(index.oid, "a sample has no index like it")

    def _by_density(self, index: Index, schema: str) -> int:
        statement = compose("reindex/measure_index", pgstatindex=name(schema, "pgstatindex"))
        row = self._ground.direct.fetch(statement, {"index": index.oid}, timeout=_LONGEST)[0]
        _, internal, leaves, density = row
        if not leaves or math.isnan(density):
            return _PAGE
        # pages of a few wide keys cannot be filled better than they are
        share = min(density / index.fillfactor, 1.0)
        return int(_PAGE * (1 + internal + math.ceil(leaves * share)))

    def _by_sample(self, index: Index) -> Mapping[int, int] | str:
        direct, table = self._ground.direct, self._ground.table(index.table)
        percent = min(100.0, 100.0 * _SAMPLED / max(index.table_pages, 1))
        params = {"table": index.table_oid}
        used, unused = direct.fetch(compose("reindex/list_covered"), params)[0]
        named: list[Part] = [name(c) for c in used]
        taken = compose("reindex/take_sample", columns=commas(named), table=table)
        try:
            with direct.transaction():
                direct.execute(compose("reindex/allow_sample"))
                direct.execute(compose("reindex/create_sample", table=table))
                for column in unused:
                    direct.execute(compose("reindex/allow_null", column=name(column)))
                direct.execute(taken, {"percent": percent})
                direct.execute(compose("reindex/remake_sample"))
                rows = direct.fetch(compose("reindex/measure_sample"), params)
        except DatabaseError as error:
            return (
                f"its rows could not be sampled ({error}); the extension pgstattuple, or the "
                "right to make temporary tables, would let it be measured"
            )
        return {r[0]: int(_PAGE + max(r[1] - _PAGE, 0) * 100 / percent) for r in rows}
