-- What: which series have rows in [start, end), and which of them a rollup has yet to follow there.
-- Params: start, end; ids, of the series to look at (NULL: all); log_start, where a log row that
--   reaches into the range can begin; dataset_id.
-- Columns: series id, whether changes are waiting.
SELECT s.id, EXISTS (
    SELECT FROM {log} AS l
    JOIN {rollup} AS r ON r.dataset_id = %(dataset_id)s
    WHERE l.series_id = s.id
      AND l.lo >= %(log_start)s AND l.lo < %(end)s AND l.hi > %(start)s
      AND NOT pg_visible_in_snapshot(l.xid, r.cursor)
)
FROM {series} AS s
WHERE s.dataset_id = %(dataset_id)s
  AND (%(ids)s::integer[] IS NULL OR s.id = ANY (%(ids)s::integer[]))
  AND EXISTS (
    SELECT FROM {points} AS t
    WHERE t.series_id = s.id AND t.ts >= %(start)s AND t.ts < %(end)s
    OFFSET 0
  )
ORDER BY s.id
