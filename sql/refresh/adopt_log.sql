-- What: takes over a change log that was restored from another cluster: transaction ids started
--   over, so every row is stamped anew and every cursor of the dataset sees nothing.
-- Params: dataset_id, sysid.
WITH stamped AS (
    UPDATE {log} SET xid = pg_current_xact_id()
), forgotten AS (
    UPDATE {dataset}
    SET prune_to = NULL, prune_next = NULL, prune_next_at = NULL, pruned_to = NULL
    WHERE id = %(dataset_id)s
), without_heads AS (
    DELETE FROM {head} AS h USING {rollup} AS r
    WHERE r.id = h.id AND r.dataset_id = %(dataset_id)s
)
UPDATE {rollup}
SET cursor = '1:1:', pass_to = NULL, pass_series = NULL, pass_lo = NULL, sysid = %(sysid)s
WHERE dataset_id = %(dataset_id)s
