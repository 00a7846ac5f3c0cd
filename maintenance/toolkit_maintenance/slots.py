"""Replication slots: which of them keep the log for nobody."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from psycopg.sql import SQL, Literal


@dataclass(frozen=True, slots=True)
class Slot:
    """A replication slot; ``kept`` are the bytes of the log that it holds back."""

    name: str
    kind: str
    is_active: bool
    kept: int
    state: str

    @classmethod
    def from_row(cls, row: Sequence[Any]) -> Slot:
        """Build from a row of ``doctor/list_slots``."""
        return cls(row[0], row[1], row[2], max(row[3] or 0, 0), row[4] or "unknown")

    @property
    def is_lost(self) -> bool:
        """Whether the server has cut it off: who used it starts anew."""
        return self.state == "lost"

    @property
    def is_idle(self) -> bool:
        """Whether nobody reads from it while it holds something back, or will never do again."""
        return not self.is_active and (self.kept > 0 or self.is_lost)

    @property
    def drop(self) -> str:
        """The statement that drops it."""
        return SQL("SELECT pg_drop_replication_slot({})").format(Literal(self.name)).as_string(None)
