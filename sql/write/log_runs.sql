-- What: logs the ranges a write touched, where no trigger does.
-- Params: ids, lows, highs.
INSERT INTO {log} (series_id, lo, hi)
SELECT id, low, high
FROM unnest(%(ids)s::integer[], %(lows)s::timestamptz[], %(highs)s::timestamptz[])
    AS n (id, low, high)
