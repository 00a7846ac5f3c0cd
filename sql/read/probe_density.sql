-- What: how many points each series has in [start, end), counted up to a cap, and its first and
--   last time there: what the chooser needs to pick a resolution.
-- Params: ids or labels, start, end, cap.
-- Columns: series id, count, first ts, last ts; whether blocks may hold points of the range.
SELECT s.id, n.count, low.ts, high.ts, {last}
FROM {series} AS s (id)
CROSS JOIN LATERAL (
    SELECT count(*) FROM (
        SELECT FROM {points} AS t
        WHERE t.series_id = s.id AND t.ts >= %(start)s AND t.ts < %(end)s
        LIMIT %(cap)s
    ) AS q
) AS n
LEFT JOIN LATERAL (
    SELECT t.ts FROM {points} AS t
    WHERE t.series_id = s.id AND t.ts >= %(start)s AND t.ts < %(end)s
    ORDER BY t.ts LIMIT 1
) AS low ON true
LEFT JOIN LATERAL (
    SELECT t.ts FROM {points} AS t
    WHERE t.series_id = s.id AND t.ts >= %(start)s AND t.ts < %(end)s
    ORDER BY t.ts DESC LIMIT 1
) AS high ON true
