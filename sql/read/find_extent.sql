-- What: the first and the last bucket that a rollup has of the series in [start, end): where they
--   have been, though their points may be gone.
-- Params: ids or labels, start, end.
-- Columns: the first, the last; NULL where there is none.
SELECT min(low.ts), max(high.ts)
FROM {series} AS s (id)
CROSS JOIN LATERAL (
    SELECT t.ts FROM {relation} AS t
    WHERE t.series_id = s.id AND t.ts >= %(start)s AND t.ts < %(end)s
    ORDER BY t.ts LIMIT 1
) AS low
CROSS JOIN LATERAL (
    SELECT t.ts FROM {relation} AS t
    WHERE t.series_id = s.id AND t.ts >= %(start)s AND t.ts < %(end)s
    ORDER BY t.ts DESC LIMIT 1
) AS high
