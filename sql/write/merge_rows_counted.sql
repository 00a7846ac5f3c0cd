-- What: merge_rows, and what it did (version 17 and later).
-- Params: start, end, and the batch's arrays where it is not staged.
-- Columns: inserted, updated.
WITH merged AS (
    MERGE INTO {points} AS t
    USING {source} AS s
    ON {same_key} AND t.ts >= %(start)s AND t.ts < %(end)s
    WHEN MATCHED AND (ROW({old}) IS DISTINCT FROM ROW({new})
                      OR ROW({old})::record *<> ROW({new})::record) THEN UPDATE SET {assignments}
    WHEN NOT MATCHED THEN INSERT ({columns}) VALUES ({values})
    RETURNING merge_action() AS action
)
SELECT count(*) FILTER (WHERE action = 'INSERT'), count(*) FILTER (WHERE action = 'UPDATE')
FROM merged
