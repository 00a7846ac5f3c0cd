-- What: how many rows of a batch have a key that exists: what MERGE cannot say before version 17.
-- Params: start, end, and the batch's arrays where it is not staged.
-- Columns: how many.
SELECT count(*)
FROM {source} AS s
JOIN {points} AS t ON {same_key} AND t.ts >= %(start)s AND t.ts < %(end)s
