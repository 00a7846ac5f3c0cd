-- What: removes the points of one series in [start, end), rows and blocks, and returns what was
--   removed: whatever others write meanwhile stays, as it is not among it.
-- Params: id, start, end; cold_start, see fetch_blocks.
-- Columns: those of fetch_points and fetch_blocks.
WITH rows AS (
    DELETE FROM {points} AS t
    WHERE t.series_id = %(id)s AND t.ts >= %(start)s AND t.ts < %(end)s
    RETURNING {columns}
), old AS (
    DELETE FROM {blocks} AS b
    WHERE b.series_id = %(id)s AND b.lo >= %(cold_start)s AND b.lo < %(end)s AND b.hi > %(start)s
    RETURNING b.*
)
SELECT %(id)s::integer, p.*, {last}
FROM (SELECT count(*), {packed} FROM (SELECT * FROM rows ORDER BY {order}) AS q) AS p
UNION ALL
SELECT %(id)s::integer, {nulls}, timestamptz_send(c.lo) || timestamptz_send(c.hi), c._header,
       {parts}, false
FROM old AS c
