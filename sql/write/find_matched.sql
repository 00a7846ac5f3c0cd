-- What: the first point of a batch of which the key exists.
-- Params: start, end, and the batch's arrays.
-- Columns: series id, ts, perhaps seq. No row where there is none.
SELECT {key}
FROM {source} AS s
JOIN {points} AS t ON {same_key} AND t.ts >= %(start)s AND t.ts < %(end)s
ORDER BY {key}
LIMIT 1
