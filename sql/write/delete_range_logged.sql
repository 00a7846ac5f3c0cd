-- What: deletes the points of series in [start, end) and logs their cells, where no trigger does;
--   one statement, so that what is logged is what was deleted.
-- Params: ids, start, end, width, origin.
-- Columns: points deleted.
WITH gone AS (
    DELETE FROM {points} AS t
    WHERE t.series_id = ANY (%(ids)s::integer[]) AND t.ts >= %(start)s AND t.ts < %(end)s
    RETURNING t.series_id, t.ts
), logged AS (
    INSERT INTO {log} (series_id, lo, hi)
    SELECT DISTINCT g.series_id, date_bin(%(width)s, g.ts, %(origin)s),
           date_bin(%(width)s, g.ts, %(origin)s) + %(width)s
    FROM gone AS g
)
SELECT count(*) FROM gone
