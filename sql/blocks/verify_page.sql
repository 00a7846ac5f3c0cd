-- What: the next blocks of one partition, with the bytes of the columns asked for.
-- Params: start, end; ids (NULL: of all series); after_id and after_lo, the key of the one before;
--   limit.
-- Columns: series id, lo, hi, points, first and last instant, the columns' bytes.
SELECT b.series_id, b.lo, b.hi, b._rows, b._first, b._last{columns}
FROM {partition} AS b
WHERE (b.series_id, b.lo) > (%(after_id)s, %(after_lo)s)
  AND b.lo < %(end)s AND b.hi > %(start)s
  AND (%(ids)s::integer[] IS NULL OR b.series_id = ANY (%(ids)s::integer[]))
ORDER BY b.series_id, b.lo
LIMIT %(limit)s
