-- What: what of one series in [start, end) a rollup has yet to follow.
-- Params: rollup, id, start, end; log_start, where a log row that reaches into the range can begin.
-- Columns: from, to.
SELECT l.lo, l.hi
FROM {log} AS l, {rollup} AS r
WHERE r.id = %(rollup)s AND l.series_id = %(id)s
  AND l.lo >= %(log_start)s AND l.lo < %(end)s AND l.hi > %(start)s
  AND NOT pg_visible_in_snapshot(l.xid, r.cursor)
