-- What: how many rows of the change log every rollup has followed, where some of them may go now or
--   a look is due at how far it may be cut; else none. See plan_prune and prune_log.
-- Params: dataset_id, keep (interval).
-- Columns: how many.
SELECT count(*)
FROM {log} AS l, {dataset} AS d
WHERE d.id = %(dataset_id)s
  AND (d.prune_next IS NULL OR d.prune_next_at <= now() - %(keep)s::interval
       OR pg_visible_in_snapshot(l.xid, d.prune_to))
  AND NOT EXISTS (
    SELECT FROM {rollup} AS r
    WHERE r.dataset_id = %(dataset_id)s AND NOT pg_visible_in_snapshot(l.xid, r.cursor)
  )
