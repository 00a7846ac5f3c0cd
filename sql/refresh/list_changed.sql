-- What: what changed in a slice of a pass, as whole buckets; a part of the statements of a slice.
--   Nothing before the mark that retention has set, an edge of every rollup: points may be gone.
-- Params: rollup, after_series, after_lo, last_series, last_lo, since, width, origin.
-- Columns: series id, ranges as a multirange.
SELECT l.series_id, range_agg(tstzrange(
    greatest(date_bin(%(width)s, l.lo, %(origin)s), d.frozen_before),
    date_bin(%(width)s, l.hi + %(width)s - interval '1 microsecond', %(origin)s))) AS ranges
FROM {log} AS l, {rollup} AS r JOIN {dataset} AS d ON d.id = r.dataset_id
WHERE r.id = %(rollup)s
  AND l.hi > coalesce(d.frozen_before, '-infinity')
  AND (l.series_id, l.lo) > (%(after_series)s, %(after_lo)s)
  AND l.lo >= %(since)s
  AND (l.series_id, l.lo) <= (%(last_series)s, %(last_lo)s)
  AND l.xid >= pg_snapshot_xmin(r.cursor)
  AND NOT pg_visible_in_snapshot(l.xid, r.cursor)
  AND pg_visible_in_snapshot(l.xid, r.pass_to)
GROUP BY l.series_id
