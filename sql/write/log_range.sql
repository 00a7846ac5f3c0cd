-- What: logs the cells of [start, end) that hold points, before they are deleted, where no
--   trigger does.
-- Params: ids, start, end, width, origin.
INSERT INTO {log} (series_id, lo, hi)
SELECT DISTINCT t.series_id, date_bin(%(width)s, t.ts, %(origin)s),
       date_bin(%(width)s, t.ts, %(origin)s) + %(width)s
FROM {points} AS t
WHERE t.series_id = ANY (%(ids)s::integer[]) AND t.ts >= %(start)s AND t.ts < %(end)s
