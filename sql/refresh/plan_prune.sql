-- What: decides how far the change log may be cut: to a snapshot that was taken so long ago that
--   whoever follows the log has seen what it sees.
-- Params: dataset_id, keep (interval).
UPDATE {dataset} AS d
SET prune_to = CASE WHEN %(keep)s = interval '0' THEN pg_current_snapshot()
                    WHEN due.is_due THEN d.prune_next ELSE d.prune_to END,
    prune_next = CASE WHEN due.is_due OR d.prune_next IS NULL THEN pg_current_snapshot()
                      ELSE d.prune_next END,
    prune_next_at = CASE WHEN due.is_due OR d.prune_next IS NULL THEN now()
                         ELSE d.prune_next_at END
FROM (
    SELECT coalesce(prune_next_at <= now() - %(keep)s, false) AS is_due
    FROM {dataset} WHERE id = %(dataset_id)s FOR NO KEY UPDATE
) AS due
WHERE d.id = %(dataset_id)s
