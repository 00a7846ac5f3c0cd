-- What: whether a block lies in the range and in one bucket, and no row among its points.
-- Params: start, end.
, b._first >= %(start)s AND b._last < %(end)s AND {first} = {last}
AND NOT EXISTS (
    SELECT FROM {points} AS t
    WHERE t.series_id = b.series_id AND t.ts >= b.lo AND t.ts < b.hi
) AS _is_whole
