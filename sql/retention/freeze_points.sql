-- What: moves the mark before which points may go, unless a rollup has yet to follow a change there;
--   the caller holds the locks of lock_changes, so that none comes meanwhile, and has looked at what
--   transactions before since have logged: writers wait for the rest only. What was followed stays
--   so, and who adopts a log stamps its rows anew.
UPDATE {dataset} AS d SET frozen_before = {mark}::timestamptz
WHERE d.id = {dataset_id} AND coalesce(d.frozen_before < {mark}::timestamptz, true)
  AND NOT EXISTS (
    SELECT FROM {log} AS l JOIN {rollup} AS r ON r.dataset_id = d.id
    WHERE l.xid >= {since}::xid8
      AND l.lo < {mark}::timestamptz AND l.hi > coalesce(d.frozen_before, '-infinity')
      AND NOT pg_visible_in_snapshot(l.xid, r.cursor))
