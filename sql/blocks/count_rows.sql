-- What: which series have rows in [start, end), and which of them a rollup has yet to follow there.
-- Params: start, end; ids, of the series to look at (NULL: all); log_start, where a log row that
--   reaches into the range can begin; dataset_id.
-- Columns: series id, rows, whether changes are waiting.
SELECT n.series_id, n.count, EXISTS (
    SELECT FROM {log} AS l
    JOIN {rollup} AS r ON r.dataset_id = %(dataset_id)s
    WHERE l.series_id = n.series_id
      AND l.lo >= %(log_start)s AND l.lo < %(end)s AND l.hi > %(start)s
      AND NOT pg_visible_in_snapshot(l.xid, r.cursor)
)
FROM (
    SELECT t.series_id, count(*) FROM {points} AS t
    WHERE t.ts >= %(start)s AND t.ts < %(end)s
      AND (%(ids)s::integer[] IS NULL OR t.series_id = ANY (%(ids)s::integer[]))
    GROUP BY t.series_id
) AS n
ORDER BY n.series_id
