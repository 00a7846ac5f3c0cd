-- What: logs the cells of a partition that hold points, before it is emptied, where no trigger
--   does; the caller holds the parent's lock.
-- Params: width, origin.
INSERT INTO {log} (series_id, lo, hi)
SELECT DISTINCT t.series_id, date_bin(%(width)s, t.ts, %(origin)s),
       date_bin(%(width)s, t.ts, %(origin)s) + %(width)s
FROM {partition} AS t
