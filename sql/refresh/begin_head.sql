-- What: sets where a pass over the newest changes is going, to the finer rollup's or to now; what is
--   known of a range that is longer holds for this one, too.
-- Params: rollup, finer (id of the finer rollup or NULL), head (interval).
INSERT INTO {head} AS h (id, dataset_id, since, cursor, pass_to, pass_series, pass_lo)
SELECT r.id, r.dataset_id, coalesce(f.since, now() - %(head)s), r.cursor,
       coalesce(f.cursor, pg_current_snapshot()), 0, 'epoch'
FROM {rollup} AS r
LEFT JOIN {head} AS f ON f.id = %(finer)s::integer
WHERE r.id = %(rollup)s AND (%(finer)s::integer IS NULL OR f.id IS NOT NULL)
ON CONFLICT (id) DO UPDATE
SET since = excluded.since,
    cursor = CASE WHEN h.since <= excluded.since
                   AND pg_snapshot_xmax(h.cursor) >= pg_snapshot_xmax(excluded.cursor)
                  THEN h.cursor ELSE excluded.cursor END,
    pass_to = excluded.pass_to, pass_series = excluded.pass_series, pass_lo = excluded.pass_lo
WHERE h.pass_to IS NULL
