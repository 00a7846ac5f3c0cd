-- What: how large a dataset is on the server, and how far its rollups have followed it.
-- Params: dataset_id, points, blocks and log (schema-qualified), rollups (schema-qualified, an array).
-- Columns: series, partitions, rows (an estimate), bytes of the rows; blocks, their points, their
--   bytes; bytes of the rollups and of the change log, log rows some rollup has yet to follow, when the least recent rollup was refreshed.
WITH part AS (
    SELECT t.relid FROM pg_partition_tree(%(points)s::regclass) AS t
    WHERE t.isleaf AND t.level > 0
)
SELECT (SELECT count(*) FROM {series} AS s WHERE s.dataset_id = %(dataset_id)s),
       (SELECT count(*) FROM part),
       -- the collected count is younger than reltuples, but lost in a crash or a restore
       (SELECT coalesce(sum(coalesce(nullif(pg_stat_get_live_tuples(c.oid), 0),
                                     greatest(c.reltuples, 0)::bigint)), 0)::bigint
        FROM part AS p JOIN pg_class AS c ON c.oid = p.relid),
       (SELECT coalesce(sum(pg_total_relation_size(p.relid)), 0)::bigint FROM part AS p),
       b.blocks, b.points,
       (SELECT coalesce(sum(pg_total_relation_size(t.relid)), 0)::bigint
        FROM pg_partition_tree(%(blocks)s::regclass) AS t WHERE t.isleaf AND t.level > 0),
       (SELECT coalesce(sum(pg_total_relation_size(t.relid)), 0)::bigint
        FROM unnest(%(rollups)s::text[]) AS r (relation)
        CROSS JOIN LATERAL pg_partition_tree(r.relation::regclass) AS t),
       pg_total_relation_size(%(log)s::regclass),
       (SELECT count(*) FROM {log} AS l
        WHERE EXISTS (SELECT FROM {rollup} AS r
                      WHERE r.dataset_id = %(dataset_id)s
                        AND NOT pg_visible_in_snapshot(l.xid, r.cursor))),
       (SELECT CASE WHEN bool_and(r.refreshed_at IS NOT NULL) THEN min(r.refreshed_at) END
        FROM {rollup} AS r WHERE r.dataset_id = %(dataset_id)s)
FROM (SELECT count(*) AS blocks, coalesce(sum(_rows), 0)::bigint AS points FROM {blocks}) AS b
