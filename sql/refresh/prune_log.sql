-- What: removes the log rows that every rollup of the dataset has followed and every cache has had
--   the time to; remembers the youngest, for a cache that was asleep.
-- Params: dataset_id.
-- Columns: how many.
WITH gone AS (
    DELETE FROM {log} AS l
    USING {dataset} AS d
    WHERE d.id = %(dataset_id)s
      AND l.xid < pg_snapshot_xmax(d.prune_to)
      AND pg_visible_in_snapshot(l.xid, d.prune_to)
      AND NOT EXISTS (
        SELECT FROM {rollup} AS r
        WHERE r.dataset_id = %(dataset_id)s AND NOT pg_visible_in_snapshot(l.xid, r.cursor)
      )
    RETURNING l.xid
), noted AS (
    UPDATE {dataset} AS d
    SET pruned_to = greatest(d.pruned_to, (SELECT max(g.xid) FROM gone AS g))
    WHERE d.id = %(dataset_id)s AND EXISTS (SELECT FROM gone)
)
SELECT count(*) FROM gone
