-- What: when one series has rows in [start, end), and its blocks there.
-- Params: id, start, end, cold_start.
-- Columns: the rows' instants packed, in order; the blocks' spans packed, in order; how many points
--   each has.
SELECT (SELECT string_agg(timestamptz_send(q.ts), ''::bytea) FROM (
            SELECT t.ts FROM {points} AS t
            WHERE t.series_id = %(id)s AND t.ts >= %(start)s AND t.ts < %(end)s
            ORDER BY t.ts) AS q),
       b.spans, b.counts
FROM (
    SELECT string_agg(timestamptz_send(q.lo) || timestamptz_send(q.hi), ''::bytea) AS spans,
           array_agg(q._rows) AS counts
    FROM (SELECT b.lo, b.hi, b._rows FROM {blocks} AS b
          WHERE b.series_id = %(id)s AND b.lo >= %(cold_start)s AND b.lo < %(end)s
            AND b.hi > %(start)s
          ORDER BY b.lo) AS q
) AS b
