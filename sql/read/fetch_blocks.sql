-- What: the blocks that hold points of each series in [start, end), oldest (or newest) first, behind
--   the rows of fetch_points; with a limit, so many as have that many points between the range's end
--   and the last of them. A row a block: as arrays the same bytes take three times as long.
-- Params: ids or labels, start, end, limit; cold_start, where the partition begins that start lies
--   in: a block lies in one partition. Where blocks may lie in one bucket: width and origin, or edges.
-- Columns: series id; NULL in those of fetch_points; the block's span, its header and the bytes of
--   each column (of a block that lies in one bucket, with no row among its points: NULL); whether
--   there are more.
UNION ALL
SELECT s.id, {nulls}, timestamptz_send(c.lo) || timestamptz_send(c.hi), c._header, {parts}, {has_next}
FROM {series} AS s (id)
CROSS JOIN LATERAL (
    SELECT b.*{before}{is_whole}
    FROM {blocks} AS b
    WHERE b.series_id = s.id AND b.lo >= %(cold_start)s AND b.lo < %(end)s AND b.hi > %(start)s
    {window}ORDER BY b.lo{direction}
) AS c
{enough}
