-- What: the blocks that reach into ranges of series.
-- Params: ids, lows, highs (inclusive), one range an element; cold_start, low and high of all.
-- Columns: series id, lo, hi; by series and time.
SELECT b.series_id, b.lo, b.hi
FROM unnest(%(ids)s::integer[], %(lows)s::timestamptz[], %(highs)s::timestamptz[])
    AS n (id, low, high)
JOIN {blocks} AS b ON b.series_id = n.id AND b.lo <= n.high AND b.hi > n.low
    AND b.lo >= %(cold_start)s AND b.lo <= %(high)s
ORDER BY b.series_id, b.lo
