-- What: how far the next transaction of a pass goes: through the change log in (series, lo) order,
--   up to a sum of widths of changed ranges, or as far as was looked at.
--   The scan is bounded before it is filtered: it follows the index whatever the planner thinks
--   of the filter, so a pass over many log rows costs each of them once.
-- Params: rollup, after_series, after_lo, since, most (interval), width, origin.
-- Columns: last series, last lo, first bucket, end of the last bucket, years touched; the last
--   three are NULL where nothing changed, or only before the mark that retention has set. No row at
--   the end of the log.
WITH scanned AS MATERIALIZED (
    SELECT l.series_id, l.lo, l.hi, l.xid
    FROM {log} AS l
    WHERE (l.series_id, l.lo) > (%(after_series)s, %(after_lo)s)
    ORDER BY l.series_id, l.lo
    LIMIT 20000
), pending AS (
    SELECT DISTINCT s.series_id, s.lo, s.hi
    FROM scanned AS s, {rollup} AS r
    WHERE r.id = %(rollup)s
      AND s.lo >= %(since)s
      AND s.xid >= pg_snapshot_xmin(r.cursor)
      AND NOT pg_visible_in_snapshot(s.xid, r.cursor)
      AND pg_visible_in_snapshot(s.xid, r.pass_to)
), summed AS (
    SELECT p.series_id, p.lo,
           sum(p.hi - p.lo) OVER (ORDER BY p.series_id, p.lo, p.hi) - (p.hi - p.lo) AS before
    FROM pending AS p
), edge AS (
    SELECT e.series_id, e.lo
    FROM (
        SELECT s.series_id, s.lo FROM summed AS s
        WHERE s.before < %(most)s AND EXISTS (SELECT FROM summed WHERE before >= %(most)s)
        UNION ALL
        SELECT s.series_id, s.lo FROM scanned AS s
        WHERE NOT EXISTS (SELECT FROM summed WHERE before >= %(most)s)
    ) AS e
    ORDER BY e.series_id DESC, e.lo DESC
    LIMIT 1
)
SELECT e.series_id, e.lo, changed.low, changed.high, changed.years
FROM edge AS e
CROSS JOIN LATERAL (
    SELECT min(b.low) AS low, max(b.high) AS high, array_agg(DISTINCT y.year) AS years
    FROM {log} AS l
    CROSS JOIN {rollup} AS r
    JOIN {dataset} AS d ON d.id = r.dataset_id
    CROSS JOIN LATERAL (
        SELECT greatest(date_bin(%(width)s, l.lo, %(origin)s), d.frozen_before) AS low,
               date_bin(%(width)s, l.hi + %(width)s - interval '1 microsecond', %(origin)s) AS high
    ) AS b
    CROSS JOIN LATERAL generate_series(
        extract(year FROM b.low)::integer,
        extract(year FROM b.high - interval '1 microsecond')::integer) AS y (year)
    WHERE r.id = %(rollup)s
      AND l.hi > coalesce(d.frozen_before, '-infinity')
      AND (l.series_id, l.lo) > (%(after_series)s, %(after_lo)s)
      AND (l.series_id, l.lo) <= (e.series_id, e.lo)
      AND l.lo >= %(since)s
      AND l.xid >= pg_snapshot_xmin(r.cursor)
      AND NOT pg_visible_in_snapshot(l.xid, r.cursor)
      AND pg_visible_in_snapshot(l.xid, r.pass_to)
) AS changed
