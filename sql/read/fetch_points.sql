-- What: the points of each series in [start, end), oldest (or newest) first.
-- Params: ids or labels, start, end, limit, and those of where.
-- Columns: series id, count, then one packed bytea a column: one row a series, however many points;
--   at last whether blocks may hold points of the range, or the columns of fetch_blocks, NULL.
SELECT s.id, p.*, {last}
FROM {series} AS s (id)
CROSS JOIN LATERAL (
    SELECT count(*), {packed}
    FROM (
        SELECT {columns}
        FROM {points} AS t
        WHERE t.series_id = s.id AND t.ts >= %(start)s AND t.ts < %(end)s{where}
        ORDER BY {order}{limit}
    ) AS q
) AS p
{blocks}
