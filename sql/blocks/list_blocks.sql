-- What: the blocks of series in [start, end), without their bytes.
-- Params: start, end, cold_start; ids (NULL: of all series).
-- Columns: series id, lo, hi, points, bytes.
SELECT b.series_id, b.lo, b.hi, b._rows, {bytes}
FROM {blocks} AS b
WHERE b.lo >= %(cold_start)s AND b.lo < %(end)s AND b.hi > %(start)s
  AND (%(ids)s::integer[] IS NULL OR b.series_id = ANY (%(ids)s::integer[]))
ORDER BY b.series_id, b.lo
