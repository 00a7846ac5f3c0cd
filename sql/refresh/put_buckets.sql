-- What: stores the buckets of one series in [low, high) as they were computed outside, removes those
--   that became empty, and leaves alone those that came out the same.
-- Params: id, low, high, and one array a column.
-- Columns: buckets written, removed.
WITH fresh AS (
    SELECT * FROM unnest({arrays}) AS f (ts{columns})
), gone AS (
    DELETE FROM {relation} AS g
    WHERE g.series_id = %(id)s AND g.ts >= %(low)s AND g.ts < %(high)s
      AND NOT EXISTS (SELECT FROM fresh AS f WHERE f.ts = g.ts)
    RETURNING 1
), put AS (
    INSERT INTO {relation} AS g (series_id, ts{columns})
    SELECT %(id)s, f.ts{fresh_columns} FROM fresh AS f ORDER BY f.ts
    ON CONFLICT (series_id, ts) DO UPDATE SET {assignments}
    WHERE ROW({old_columns})::record *<> ROW({new_columns})::record
    RETURNING 1
)
SELECT (SELECT count(*) FROM put), (SELECT count(*) FROM gone)
