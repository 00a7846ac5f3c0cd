"""The SQL that peers are given: what anybody would write for the same answer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import LiteralString

from psycopg.sql import SQL, Composable, Identifier, Literal

_POINTS = """
SELECT ts, open, high, low, close, volume
FROM {points}
WHERE series_id = {series} AND ts >= {start} AND ts < {end}
ORDER BY ts"""

_HOURS = """
SELECT date_bin('1 hour', ts, '1970-01-01Z') AS hour,
       (array_agg(open ORDER BY ts))[1] AS open, max(high) AS high, min(low) AS low,
       (array_agg(close ORDER BY ts DESC))[1] AS close, sum(volume) AS volume,
       sum((high + low + close) / 3 * volume) / nullif(sum(volume), 0) AS vwap
FROM {points}
WHERE series_id = {series} AND ts >= {start} AND ts < {end}
GROUP BY 1
ORDER BY 1"""

_PACKED = """
SELECT count(*), string_agg(timestamptz_send(ts), ''::bytea),
       string_agg(float8send(open_first), ''::bytea), string_agg(float8send(high_max), ''::bytea),
       string_agg(float8send(low_min), ''::bytea), string_agg(float8send(close_last), ''::bytea),
       string_agg(float8send(volume_sum), ''::bytea), string_agg(float8send(vwap_pv), ''::bytea),
       string_agg(float8send(vwap_v), ''::bytea)
FROM (
    SELECT ts, open_first, high_max, low_min, close_last, volume_sum, vwap_pv, vwap_v
    FROM {rollup}
    WHERE series_id = {series} AND ts >= {start} AND ts < {end}
    ORDER BY ts
) AS q"""


@dataclass(frozen=True, slots=True)
class Questions:
    """The statements over one table and series, with their values written into them."""

    schema: str
    table: str
    series_id: int

    def points(self, start: str, end: str) -> str:
        """The bars of a range."""
        return self._filled(_POINTS, start, end)

    def hours(self, start: str, end: str) -> str:
        """Hourly bars, from points."""
        return self._filled(_HOURS, start, end)

    def packed_hours(self, start: str, end: str) -> str:
        """The least a rollup read can be: its buckets, packed, nothing asked about changes."""
        return self._filled(_PACKED, start, end)

    def _filled(self, template: LiteralString, start: str, end: str) -> str:
        return compose(
            template,
            points=Identifier(self.schema, self.table),
            rollup=Identifier(self.schema, f"{self.table}_1h"),
            series=Literal(self.series_id),
            start=Literal(start),
            end=Literal(end),
        )


def compose(template: LiteralString, **parts: Composable) -> str:
    """Return a statement with its ``{parts}`` filled in."""
    return SQL(template).format(**parts).as_string(None)
