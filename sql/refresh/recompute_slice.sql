-- What: recomputes the whole buckets a slice of changes touches, removes those that became
--   empty, and leaves alone those that came out the same; one statement, one snapshot. Buckets of
--   which blocks may hold points are left to plan_cold.
-- Params: rollup, after_series, after_lo, last_series, last_lo, low, high, width, origin.
-- Columns: buckets computed, written, removed; whether there are some of which blocks may hold
--   points.
WITH work AS ({changed}), spans AS MATERIALIZED (
    SELECT w.series_id, lower(u.span) AS low, upper(u.span) AS high
    FROM work AS w CROSS JOIN LATERAL unnest(w.ranges{hot}) AS u (span)
), fresh AS MATERIALIZED (
    SELECT s.series_id, b.*
    FROM spans AS s
    CROSS JOIN LATERAL (
        SELECT date_bin(%(width)s, t.ts, %(origin)s) AS ts{states}
        FROM {source} AS t
        WHERE t.series_id = s.series_id AND t.ts >= s.low AND t.ts < s.high
          AND t.ts >= %(low)s AND t.ts < %(high)s
        GROUP BY 1
    ) AS b
), emptied AS MATERIALIZED (
    -- OFFSET 0: one index range a span; a join on the series alone would compare every bucket of
    -- a series with every span of it
    SELECT b.tableoid, b.ctid
    FROM spans AS s
    CROSS JOIN LATERAL (
        SELECT t.tableoid, t.ctid, t.ts FROM {relation} AS t
        WHERE t.series_id = s.series_id AND t.ts >= s.low AND t.ts < s.high
          AND t.ts >= %(low)s AND t.ts < %(high)s
        OFFSET 0
    ) AS b
    WHERE NOT EXISTS (SELECT FROM fresh AS f WHERE f.series_id = s.series_id AND f.ts = b.ts)
), gone AS (
    -- by address, not by key: whatever the statistics say, this costs no more than the buckets
    -- that go; nobody else writes to a rollup, so addresses hold still
    DELETE FROM {relation} AS g
    WHERE (g.tableoid, g.ctid) IN (SELECT e.tableoid, e.ctid FROM emptied AS e)
      AND g.ts >= %(low)s AND g.ts < %(high)s
    RETURNING 1
), put AS (
    INSERT INTO {relation} AS g (series_id, ts{columns})
    SELECT f.series_id, f.ts{fresh_columns} FROM fresh AS f ORDER BY f.series_id, f.ts
    ON CONFLICT (series_id, ts) DO UPDATE SET {assignments}
    WHERE ROW({old_columns})::record *<> ROW({new_columns})::record
    RETURNING 1
)
-- gone is counted first: it must not wade through the rows that put has just written
SELECT c.computed, (SELECT count(*) FROM put), c.removed, {is_cold}
FROM (SELECT (SELECT count(*) FROM fresh) AS computed,
             (SELECT count(*) FROM gone) AS removed OFFSET 0) AS c
