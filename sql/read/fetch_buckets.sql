-- What: the mergeable states of each series' buckets in [start, end), computed from points.
-- Params: ids or labels, start, end, width and origin (or edges), limit, and those of where.
-- Columns: series id, count of buckets, points touched, then one packed bytea a state; at last
--   whether blocks may hold points of the range.
SELECT s.id, p.*, {last}
FROM {series} AS s (id)
CROSS JOIN LATERAL (
    SELECT count(*), sum(q.n)::bigint, {packed}
    FROM (
        SELECT {bucket} AS ts, count(*) AS n{states}
        FROM {points} AS t
        WHERE t.series_id = s.id AND t.ts >= %(start)s AND t.ts < %(end)s{where}
        GROUP BY 1
        ORDER BY 1{direction}{limit}
    ) AS q
) AS p
