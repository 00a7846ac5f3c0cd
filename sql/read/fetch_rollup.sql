-- What: the states of each series' rollup buckets in [start, end), always equal to the points':
--   unchanged buckets come from the rollup, changed ones and the two cut off by start and end
--   are computed from points, in one statement and so in one snapshot. Before the mark that
--   retention has set points may be gone: there the rollup has all there is to know.
-- Params: ids or labels, start, end; inner_start and inner_end, the whole buckets inside;
--   cut, the partial buckets at the ends as a multirange; log_start, where a log row that
--   reaches into the range can begin; rollup, its id; width, origin; cold and hot, the buckets of
--   which blocks may hold points, and the others, as multiranges; gone, before which time buckets
--   are known to be gone.
--   The points' part is fetch_changed, inline, or planned late and only where something changed.
-- Columns: series id; count and packed states from the rollup; count, points touched and packed
--   states from the points; of buckets of which blocks may hold points those that are not in the
--   answer yet, as a multirange; whether blocks may hold points of the others, too.
SELECT s.id, clean.*, fresh.*, {left_out}, follower.is_outdated OR {is_colder}
FROM {series} AS s (id)
CROSS JOIN (
    SELECT r.cursor, pg_snapshot_xmin(r.cursor) AS oldest, h.since, h.cursor AS head,
           tstzmultirange(tstzrange(d.frozen_before, NULL)) AS thawed,
           r.gone_before IS DISTINCT FROM %(gone)s::timestamptz AS is_outdated
    FROM {rollup} AS r
    JOIN {dataset} AS d ON d.id = r.dataset_id
    LEFT JOIN {head} AS h ON h.id = r.id
    WHERE r.id = %(rollup)s
) AS follower
CROSS JOIN LATERAL (
    SELECT follower.thawed * (%(cut)s::tstzmultirange + coalesce(range_agg(tstzrange(
        date_bin(%(width)s, greatest(l.lo, %(start)s), %(origin)s),
        date_bin(%(width)s, least(l.hi, %(end)s) + %(width)s - interval '1 microsecond', %(origin)s)
    )), '{{}}')) AS ranges
    FROM {log} AS l
    WHERE l.series_id = s.id
      AND l.lo >= %(log_start)s AND l.lo < %(end)s AND l.hi > %(start)s
      AND l.xid >= follower.oldest
      AND NOT pg_visible_in_snapshot(l.xid, follower.cursor)
      -- nor is among the newest changes that it has followed before the others
      AND NOT coalesce(l.lo >= follower.since
                       AND pg_visible_in_snapshot(l.xid, follower.head), false)
    OFFSET 0
) AS changed
CROSS JOIN LATERAL (
    SELECT count(*), {packed}
    FROM (
        SELECT t.ts{stored}
        FROM {relation} AS t
        WHERE t.series_id = s.id AND t.ts >= %(inner_start)s AND t.ts < %(inner_end)s
          AND NOT changed.ranges @> t.ts
        ORDER BY t.ts
    ) AS q
) AS clean
{fresh}
-- names the points, so that they are locked before the snapshot is taken: a partition dropped
-- meanwhile is then in all of the answer or in none of it
WHERE NOT EXISTS (SELECT FROM {points} WHERE false)
