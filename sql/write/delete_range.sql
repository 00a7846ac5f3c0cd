-- What: deletes the points of series in [start, end). Params: ids, start, end.
DELETE FROM {points} AS t
WHERE t.series_id = ANY (%(ids)s::integer[]) AND t.ts >= %(start)s AND t.ts < %(end)s
