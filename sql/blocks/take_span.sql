-- What: removes the points of one series in [start, end), rows and blocks, and returns what was
--   removed: whatever others write meanwhile stays, as it is not among it.
-- Params: id, start, end; cold_start, see fetch_blocks.
-- Columns: those of fetch_points with its blocks.
WITH rows AS (
    DELETE FROM {points} AS t
    WHERE t.series_id = %(id)s AND t.ts >= %(start)s AND t.ts < %(end)s
    RETURNING {columns}
), old AS (
    DELETE FROM {blocks} AS b
    WHERE b.series_id = %(id)s AND b.lo >= %(cold_start)s AND b.lo < %(end)s AND b.hi > %(start)s
    RETURNING b.*
)
SELECT %(id)s::integer, p.*, c.*
FROM (SELECT count(*), {packed} FROM (SELECT * FROM rows ORDER BY {order}) AS q) AS p
CROSS JOIN (
    SELECT string_agg(timestamptz_send(b.lo) || timestamptz_send(b.hi), ''::bytea),
           array_agg(b._header), {arrays}, false
    FROM (SELECT * FROM old ORDER BY lo) AS b
) AS c
