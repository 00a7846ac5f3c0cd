-- What: removes the log rows that every rollup of the dataset has followed (without rollups:
--   all that have been committed).
-- Params: dataset_id.
DELETE FROM {log} AS l
WHERE l.xid < coalesce((SELECT min(pg_snapshot_xmax(r.cursor)) FROM {rollup} AS r
                        WHERE r.dataset_id = %(dataset_id)s),
                       pg_snapshot_xmax(pg_current_snapshot()))
  AND NOT EXISTS (
    SELECT FROM {rollup} AS r
    WHERE r.dataset_id = %(dataset_id)s AND NOT pg_visible_in_snapshot(l.xid, r.cursor)
)
