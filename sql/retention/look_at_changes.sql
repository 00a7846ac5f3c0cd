-- What: what of the change log before a time some rollup has yet to follow, and which systems the
--   rollups' cursors are of.
-- Params: dataset_id, before.
-- Columns: log rows that are not followed, system identifiers.
SELECT (SELECT count(*) FROM {log} AS l
        WHERE l.lo < %(before)s AND l.hi > coalesce(d.frozen_before, '-infinity') AND EXISTS (
            SELECT FROM {rollup} AS r
            WHERE r.dataset_id = d.id AND NOT pg_visible_in_snapshot(l.xid, r.cursor))),
       (SELECT array_agg(DISTINCT r.sysid) FROM {rollup} AS r WHERE r.dataset_id = d.id)
FROM {dataset} AS d WHERE d.id = %(dataset_id)s
