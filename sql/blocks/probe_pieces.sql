-- What: which pieces of series' time are not free: rows or blocks are there, or right before them a
--   block that has room.
-- Params: ids, starts, ends; cold_starts, where the partition of each begins: a block lies in one
--   partition; rooms, the points such a block may have (-1: no matter); start, end, cold_start of
--   all, by which partitions are left out.
-- Columns: number of the piece, from 1; where the block at or before its start begins (or NULL).
SELECT n.number, b.lo
FROM unnest(%(ids)s::integer[], %(starts)s::timestamptz[], %(ends)s::timestamptz[],
            %(cold_starts)s::timestamptz[], %(rooms)s::integer[])
    WITH ORDINALITY AS n (id, low, high, cold, room, number)
LEFT JOIN LATERAL (
    SELECT b.lo, b.hi, b._rows FROM {blocks} AS b
    WHERE b.series_id = n.id AND b.lo >= n.cold AND b.lo <= n.low
      AND b.lo >= %(cold_start)s AND b.lo < %(end)s
    ORDER BY b.lo DESC LIMIT 1
) AS b ON true
WHERE b.hi > n.low OR b._rows <= n.room
   OR EXISTS (
    SELECT FROM {blocks} AS o
    WHERE o.series_id = n.id AND o.lo > n.low AND o.lo < n.high
      AND o.lo >= %(cold_start)s AND o.lo < %(end)s
) OR EXISTS (
    SELECT FROM {points} AS t
    WHERE t.series_id = n.id AND t.ts >= n.low AND t.ts < n.high
      AND t.ts >= %(start)s AND t.ts < %(end)s
)
ORDER BY n.number
