-- What: the changed ranges of a slice of which blocks may hold points, as whole buckets; asked after
--   recompute_slice, so that what it left out is among them.
-- Params: rollup, after_series, after_lo, last_series, last_lo, width, origin.
-- Columns: series id, ranges as a multirange.
SELECT w.series_id, w.ranges * {cold}
FROM ({changed}) AS w
WHERE w.ranges && {cold}
ORDER BY w.series_id
