-- What: what of one rollup has to be refreshed, as whole buckets; looks at the first changes only,
--   so that who has much to follow begins soon.
-- Params: rollup, width, origin; most, how many log rows are looked at.
-- Columns: change-log rows, series, ranges, buckets; whether a pass is under way; what
--   the change-log rows add up to, as slices do.
WITH changed AS (
    SELECT l.series_id, count(*) AS n, sum(l.hi - l.lo) AS width, range_agg(tstzrange(
        date_bin(%(width)s, l.lo, %(origin)s),
        date_bin(%(width)s, l.hi + %(width)s - interval '1 microsecond', %(origin)s))) AS ranges
    FROM (
        SELECT c.series_id, c.lo, c.hi
        FROM {log} AS c, {rollup} AS r
        WHERE r.id = %(rollup)s
          AND c.xid >= pg_snapshot_xmin(r.cursor)
          AND NOT pg_visible_in_snapshot(c.xid, r.cursor)
        LIMIT %(most)s
    ) AS l
    GROUP BY l.series_id
)
SELECT coalesce(sum(c.n), 0)::bigint, count(*), coalesce(sum(b.ranges), 0)::bigint,
       coalesce(sum(b.buckets), 0)::bigint,
       (SELECT r.pass_to IS NOT NULL FROM {rollup} AS r WHERE r.id = %(rollup)s),
       coalesce(sum(c.width), interval '0')
FROM changed AS c
CROSS JOIN LATERAL (
    SELECT count(*) AS ranges,
           sum(extract(epoch FROM upper(u.span) - lower(u.span))
               / extract(epoch FROM %(width)s::interval)) AS buckets
    FROM unnest(c.ranges) AS u (span)
) AS b
