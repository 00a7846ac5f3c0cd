"""How long a dataset is kept: points in rows, points in blocks, and each rollup, apart."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from toolkit.errors import QueryError, SchemaError, UnknownName
from toolkit.timegrid import Step


@dataclass(frozen=True, slots=True)
class Retention:
    """Ages (steps: 90d, 2y) from which on something may be dropped; empty: it is kept for ever.

    ``rows`` is for points that lie in rows, ``blocks`` for those that were compressed;
    ``rollups`` has (step, age), and takes a mapping. A rollup outlives its points.

    >>> Retention(rows="90d", rollups={"5m": "1y"}).rollups
    (('5m', '1y'),)
    """

    rows: str = ""
    blocks: str = ""
    rollups: tuple[tuple[str, str], ...] = ()

    def __post_init__(self) -> None:
        pairs = self.rollups.items() if isinstance(self.rollups, Mapping) else self.rollups
        object.__setattr__(self, "rollups", tuple((step, age) for step, age in pairs if age))
        for what, age in (("rows", self.rows), ("blocks", self.blocks), *self.rollups):
            if not age:
                continue
            _check(f"retain {what}", age)

    @property
    def of_points(self) -> int:
        """The longest age in µs that points are kept for by a policy; 0: there is none."""
        return max((age_us(a) for a in (self.rows, self.blocks) if a), default=0)

    def of_rollup(self, step: str) -> str:
        """Return the age of a rollup; empty: it is kept for ever."""
        return dict(self.rollups).get(step, "")

    def check(self, dataset: str, ladder: tuple[str, ...], compress_after: str) -> None:
        """Raise SchemaError for what cannot be kept to."""
        if compress_after:
            _check(f"dataset {dataset!r}: compress_after", compress_after)
        if compress_after and self.rows and age_us(self.rows) <= age_us(compress_after):
            raise SchemaError(
                f"dataset {dataset!r}: rows are kept for {self.rows}, and compressed only after "
                f"{compress_after}; keep rows longer than that, and blocks as long as you need"
            )
        for step, age in self.rollups:
            if step not in ladder:
                raise UnknownName("rollup", step, ladder, f"dataset {dataset!r}")
            if not self.of_points or age_us(age) < self.of_points:
                raise SchemaError(
                    f"dataset {dataset!r}: the rollup {step} is to go after {age}, before its "
                    "points do; set ages of rows and blocks that are no longer than that"
                )

    def to_mapping(self) -> dict[str, Any]:
        """Return what is set, as JSON has it."""
        found = {"rows": self.rows, "blocks": self.blocks, "rollups": dict(self.rollups)}
        return {key: value for key, value in found.items() if value}


def age_us(age: str) -> int:
    """Return an age in µs: a month is 30.44 days, a year 365.25.

    >>> age_us("1d")
    86400000000
    """
    return Step.parse(age).approximate_us


def _check(what: str, age: str) -> None:
    try:
        Step.parse(age)
    except QueryError as error:
        raise SchemaError(f"{what}: {error}") from None
