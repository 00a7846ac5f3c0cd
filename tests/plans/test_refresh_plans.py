"""What a refresh costs right after a load, when the server knows nothing about the tables yet."""

from __future__ import annotations

import numpy as np
import psycopg
from fix_servers import Database

import toolkit

DAYS, BARS = 2000, 78  # sessions of five-minute bars: three slices of many spans each
SERIES = ("A", "B")
_DAILY_LOG = """
INSERT INTO toolkit.candles_log (series_id, lo, hi)
SELECT id, timestamptz '2014-01-01 09:00Z' + d * interval '24 hours',
       timestamptz '2014-01-01 16:00Z' + d * interval '24 hours'
FROM toolkit.series, generate_series(0, %s) AS d WHERE name IN ('A', 'B')
"""


def _sessions() -> np.ndarray:
    days = np.datetime64("2014-01-01T09:30", "us") + np.arange(DAYS) * np.timedelta64(1, "D")
    return (days[:, None] + np.arange(BARS) * np.timedelta64(5, "m")).ravel()


def test_trap_a_refresh_of_tables_without_statistics_is_not_quadratic(database: Database) -> None:
    """A planner that guesses four rows compares every bucket with every span."""
    ts = _sessions()
    with (
        toolkit.connect(database.dsn) as store,
        psycopg.connect(database.dsn, autocommit=True) as connection,
    ):
        for series in SERIES:
            store.write("candles", {"ts": ts, "close": np.ones(len(ts))}, series=series)
        connection.execute(_DAILY_LOG, [DAYS - 1])
        guessed = store.refresh("candles")
        connection.execute("VACUUM (ANALYZE)")
        connection.execute(_DAILY_LOG, [DAYS - 1])
        known = store.refresh("candles")
    fine = len(SERIES) * DAYS * BARS
    assert guessed.levels[0].written == fine
    assert known.levels[0].computed >= fine
    assert known.levels[0].written == 0
    assert guessed.seconds < 8 * known.seconds
    print(f"\nrefresh: {guessed.seconds:.2f} s without statistics, {known.seconds:.2f} s with")
