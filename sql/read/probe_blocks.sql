-- What: how many points each series has in blocks in [start, end), and its first and last time
--   there: probe_density for blocks. Of those that the range cuts, their times are decoded.
-- Params: ids or labels, start, end, cold_start.
-- Columns: series id; points of the blocks that lie wholly in the range, their first and last time;
--   spans, headers and times of those that do not, as fetch_blocks has them.
SELECT s.id, b.*
FROM {series} AS s (id)
CROSS JOIN LATERAL (
    SELECT coalesce(sum(q._rows) FILTER (WHERE q._is_whole), 0)::bigint,
           min(q._first) FILTER (WHERE q._is_whole), max(q._last) FILTER (WHERE q._is_whole),
           string_agg(timestamptz_send(q.lo) || timestamptz_send(q.hi), ''::bytea)
               FILTER (WHERE NOT q._is_whole),
           array_agg(q._header) FILTER (WHERE NOT q._is_whole),
           array_agg(q.ts) FILTER (WHERE NOT q._is_whole)
    FROM (
        SELECT b.*, b._first >= %(start)s AND b._last < %(end)s AS _is_whole
        FROM {blocks} AS b
        WHERE b.series_id = s.id AND b.lo >= %(cold_start)s AND b.lo < %(end)s AND b.hi > %(start)s
        ORDER BY b.lo
    ) AS q
) AS b
