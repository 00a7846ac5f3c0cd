-- What: how many rows one series has in [start, end), in the rows of points or in a rollup.
-- Params: id, start, end.
-- Columns: rows.
SELECT count(*) FROM {table} AS t
WHERE t.series_id = %(id)s AND t.ts >= %(start)s AND t.ts < %(end)s
