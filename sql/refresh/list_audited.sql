-- What: which series have points, blocks or rollup buckets in [start, end).
-- Params: dataset_id, start, end, cold_start; ids, of the series to look at (NULL: all).
-- Columns: series id.
SELECT s.id
FROM {series} AS s
WHERE s.dataset_id = %(dataset_id)s
  AND (%(ids)s::integer[] IS NULL OR s.id = ANY (%(ids)s::integer[]))
  AND (
    -- OFFSET 0: a probe a series, where a join might read all of the range
    EXISTS (
        SELECT FROM {points} AS t
        WHERE t.series_id = s.id AND t.ts >= %(start)s AND t.ts < %(end)s
        OFFSET 0
    )
    OR EXISTS (
        SELECT FROM {blocks} AS b
        WHERE b.series_id = s.id AND b.lo >= %(cold_start)s AND b.lo < %(end)s AND b.hi > %(start)s
        OFFSET 0
    )
    {has_buckets}
  )
ORDER BY s.id
