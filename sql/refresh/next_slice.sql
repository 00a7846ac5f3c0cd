-- What: the next slice of changed ranges of a pass: up to a sum of widths, in (series, lo) order.
-- Params: rollup, after_series, after_lo, most (interval), width, origin.
-- Columns: last series, last lo, first bucket, end of the last bucket, years touched, log rows.
WITH pending AS (
    -- one row a key: a slice that ended between two rows of one (series, lo) would lose the longer
    SELECT l.series_id, l.lo, max(l.hi) AS hi
    FROM {log} AS l, {rollup} AS r
    WHERE r.id = %(rollup)s
      AND (l.series_id, l.lo) > (%(after_series)s, %(after_lo)s)
      AND l.xid >= pg_snapshot_xmin(r.cursor)
      AND NOT pg_visible_in_snapshot(l.xid, r.cursor)
      AND pg_visible_in_snapshot(l.xid, r.pass_to)
    GROUP BY l.series_id, l.lo
    ORDER BY l.series_id, l.lo
    LIMIT 50000
), summed AS (
    SELECT p.*, sum(p.hi - p.lo) OVER (ORDER BY p.series_id, p.lo) AS total
    FROM pending AS p
), slice AS (
    SELECT s.* FROM summed AS s WHERE s.total - (s.hi - s.lo) < %(most)s
), edge AS (
    SELECT series_id, lo FROM slice ORDER BY series_id DESC, lo DESC LIMIT 1
)
SELECT e.series_id, e.lo,
       min(date_bin(%(width)s, s.lo, %(origin)s)),
       max(date_bin(%(width)s, s.hi + %(width)s - interval '1 microsecond', %(origin)s)),
       array_agg(DISTINCT y.year), count(*)
FROM slice AS s
CROSS JOIN edge AS e
CROSS JOIN LATERAL generate_series(
    extract(year FROM date_bin(%(width)s, s.lo, %(origin)s))::integer,
    extract(year FROM s.hi - interval '1 microsecond')::integer) AS y (year)
GROUP BY e.series_id, e.lo
