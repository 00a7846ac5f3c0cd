-- What: how many blocks of series reach into [start, end), their points, and which of them lie where
--   they must not: where an earlier one of the series reaches into them, or where readers do not
--   look for blocks. One statement, so that blocks that others make meanwhile do not seem to overlap.
-- Params: start, end, cold_start; ids (NULL: of all series); dataset_id.
-- Columns: blocks, points; the misplaced ones' series, lo, and whether they overlap, as arrays.
SELECT count(*), coalesce(sum(q._rows), 0)::bigint,
       coalesce(array_agg(q.series_id) FILTER (WHERE q.overlaps OR q.is_unseen), '{{}}'),
       coalesce(array_agg(q.lo) FILTER (WHERE q.overlaps OR q.is_unseen), '{{}}'),
       coalesce(array_agg(q.overlaps) FILTER (WHERE q.overlaps OR q.is_unseen), '{{}}')
FROM (
    SELECT b.series_id, b.lo, b.hi, b._rows,
           coalesce(max(b.hi) OVER earlier > b.lo, false) AS overlaps,
           d.cold_to IS NULL OR b._last >= d.cold_to AS is_unseen
    FROM {blocks} AS b
    CROSS JOIN (SELECT cold_to FROM {dataset} WHERE id = %(dataset_id)s) AS d
    WHERE b.lo >= %(cold_start)s AND b.lo < %(end)s AND b.hi > %(start)s
      AND (%(ids)s::integer[] IS NULL OR b.series_id = ANY (%(ids)s::integer[]))
    WINDOW earlier AS (PARTITION BY b.series_id ORDER BY b.lo
                       ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING)
) AS q
