-- What: whether a rollup has more to follow than a few slices; looks at the first changes only.
-- Params: rollup, most (interval).
-- Columns: whether.
SELECT coalesce(sum(u.hi - u.lo) >= %(most)s, false)
FROM (
    SELECT l.lo, l.hi
    FROM {log} AS l, {rollup} AS r
    WHERE r.id = %(rollup)s
      AND l.xid >= pg_snapshot_xmin(r.cursor)
      AND NOT pg_visible_in_snapshot(l.xid, r.cursor)
    LIMIT 20000
) AS u
