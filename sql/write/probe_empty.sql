-- What: whether every series of a batch has nothing yet between its first and last new point.
-- Params: ids, lows, highs (inclusive), start, end (of the whole batch).
-- Columns: true if all is empty.
SELECT NOT EXISTS (
    SELECT FROM unnest(%(ids)s::integer[], %(lows)s::timestamptz[], %(highs)s::timestamptz[])
        AS n (id, low, high)
    CROSS JOIN LATERAL (
        SELECT FROM {points} AS t
        WHERE t.series_id = n.id AND t.ts >= n.low AND t.ts <= n.high
          AND t.ts >= %(start)s AND t.ts < %(end)s
        LIMIT 1
    ) AS q
)
