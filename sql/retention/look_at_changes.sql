-- What: what of the change log before a time some rollup has yet to follow, which systems the
--   rollups' cursors are of, and from which transaction on changes are not seen here.
-- Params: dataset_id, before.
-- Columns: log rows that are not followed, system identifiers, transaction id.
SELECT (SELECT count(*) FROM {log} AS l
        WHERE l.lo < %(before)s AND l.hi > coalesce(d.frozen_before, '-infinity') AND EXISTS (
            SELECT FROM {rollup} AS r
            WHERE r.dataset_id = d.id AND NOT pg_visible_in_snapshot(l.xid, r.cursor))),
       (SELECT array_agg(DISTINCT r.sysid) FROM {rollup} AS r WHERE r.dataset_id = d.id),
       pg_snapshot_xmin(pg_current_snapshot())::text
FROM {dataset} AS d WHERE d.id = %(dataset_id)s
