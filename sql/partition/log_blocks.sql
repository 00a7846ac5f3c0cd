-- What: logs the time of the blocks in a partition before they are dropped: no trigger does. A row
--   of the log stays within a cell of it.
-- Params: width, origin.
INSERT INTO {log} (series_id, lo, hi)
SELECT b.series_id,
       greatest(date_bin(%(width)s, b._first, %(origin)s), c.cell),
       least(date_bin(%(width)s, b._last, %(origin)s) + %(width)s, c.cell + interval '7 days')
FROM {partition} AS b
CROSS JOIN LATERAL generate_series(
    date_bin(interval '7 days', b._first, timestamptz 'epoch'), b._last, interval '7 days'
) AS c (cell)
