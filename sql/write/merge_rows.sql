-- What: upserts a batch; identical rows are not touched, so they cost no WAL and log no change.
--   The constant bounds let the planner leave out the other partitions.
--   Compared bit for bit: 0.0 and -0.0 are equal, and not the same.
--   Values first: building two records for that is 2 to 6 % of an upsert that changes every row.
-- Params: start, end, and the batch's arrays where it is not staged.
MERGE INTO {points} AS t
USING {source} AS s
ON {same_key} AND t.ts >= %(start)s AND t.ts < %(end)s
WHEN MATCHED AND (ROW({old}) IS DISTINCT FROM ROW({new})
                  OR ROW({old})::record *<> ROW({new})::record) THEN UPDATE SET {assignments}
WHEN NOT MATCHED THEN INSERT ({columns}) VALUES ({values})
