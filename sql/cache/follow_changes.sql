-- What: what was written to a dataset since a snapshot: the ranges that changed, at most so many.
--   One statement, so what it tells is all that its own snapshot sees.
-- Params: dataset_id, since (a snapshot), known (another one), most (ranges).
-- Columns: the snapshot now; which start of which server, database and schema this is; whether the
--   change log still has all that the snapshot does not see; series id, from and to of a changed
--   range, NULL if there is none; whether the snapshot "known" does not see that either; where the
--   log was at the earliest after the snapshot: timeline and LSN, NULL where no replica is to know.
SELECT s.now::text, s.identity, s.is_whole, l.series_id, l.lo, l.hi, l.is_new, {position}
FROM (
    SELECT pg_current_snapshot() AS now,
           concat_ws(' ', extract(epoch FROM pg_postmaster_start_time()),
                     (SELECT oid FROM pg_database WHERE datname = current_database()),
                     -- another one when the schema was dropped and restored in place
                     d.tableoid) AS identity,
           coalesce(d.pruned_to < pg_snapshot_xmin(%(since)s::pg_snapshot), true) AS is_whole
    FROM {dataset} AS d
    WHERE d.id = %(dataset_id)s
) AS s
LEFT JOIN LATERAL (
    SELECT c.series_id, c.lo, c.hi,
           NOT pg_visible_in_snapshot(c.xid, %(known)s::pg_snapshot) AS is_new
    FROM {log} AS c
    WHERE c.xid >= pg_snapshot_xmin(%(since)s::pg_snapshot)
      AND NOT pg_visible_in_snapshot(c.xid, %(since)s::pg_snapshot)
    LIMIT %(most)s
) AS l ON true
