-- What: which stored buckets of one series in [start, end) are not those that were computed outside.
--   Sums of floats may differ by what adding them up in another order makes.
-- Params: id, start, end, and one array a column; of each sum of floats also by how much at most.
-- Columns: the bucket, and what is wrong with it: missing, extra or wrong.
WITH fresh AS (
    SELECT * FROM unnest({arrays}) AS f (ts{columns})
)
SELECT coalesce(f.ts, g.ts),
       CASE WHEN g.ts IS NULL THEN 'missing' WHEN f.ts IS NULL THEN 'extra' ELSE 'wrong' END
FROM fresh AS f
FULL JOIN (
    SELECT * FROM {relation} AS t
    WHERE t.series_id = %(id)s AND t.ts >= %(start)s AND t.ts < %(end)s
) AS g ON g.ts = f.ts
WHERE g.ts IS NULL OR f.ts IS NULL OR {differs}
ORDER BY 1
