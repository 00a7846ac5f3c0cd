-- What: tells the change log, for who remembers points or buckets, what time a detached partition of
--   them held. A row of the log stays within a cell of it; what lies between two points is told of,
--   too: nothing is counted again before the mark.
-- Params: width, origin.
INSERT INTO {log} (series_id, lo, hi)
SELECT q.series_id, greatest(date_bin(%(width)s, q.first, %(origin)s), q.cell),
       least(date_bin(%(width)s, q.last, %(origin)s) + %(width)s, q.cell + interval '7 days')
FROM (
    SELECT t.series_id, date_bin(interval '7 days', t.ts, timestamptz 'epoch') AS cell,
           min(t.ts) AS first, max(t.ts) AS last
    FROM {partition} AS t GROUP BY 1, 2
) AS q
