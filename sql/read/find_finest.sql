-- What: how far apart the two nearest points of a series are in [start, end): what the recorded
--   step is held against before a read is refused as finer than the series.
-- Params: id, start, end.
-- Columns: the least distance; NULL where no two points differ in time.
SELECT min(q.apart)
FROM (
    SELECT t.ts - lag(t.ts) OVER (ORDER BY t.ts) AS apart
    FROM {points} AS t
    WHERE t.series_id = %(id)s AND t.ts >= %(start)s AND t.ts < %(end)s
) AS q
WHERE q.apart > '0'::interval
