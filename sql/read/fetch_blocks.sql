-- What: the blocks of one series that hold points of [start, end), oldest (or newest) first; with a
--   limit, so many as have that many points between the range's end and the last of them.
-- Params: start, end, limit; cold_start, where the partition begins that start lies in: a block
--   lies in one partition. Where blocks may lie in one bucket: width and origin, or edges.
-- Columns: the blocks' spans, their headers and the bytes of each column as arrays (of a block that
--   lies in one bucket, with no row among its points: NULL); whether there are more.
CROSS JOIN LATERAL (
    SELECT string_agg(timestamptz_send(b.lo) || timestamptz_send(b.hi), ''::bytea){enough},
           array_agg(b._header){enough}, {arrays}, {is_cut}
    FROM (
        SELECT b.*{before}{is_whole}
        FROM {blocks} AS b
        WHERE b.series_id = s.id AND b.lo >= %(cold_start)s AND b.lo < %(end)s AND b.hi > %(start)s
        {window}ORDER BY b.lo{direction}
    ) AS b
) AS c
