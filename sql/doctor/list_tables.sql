-- What: the tables of a schema that hold rows, with what the server has counted of each. One that is
--   dropped meanwhile has no size.
-- Params: schema.
-- Columns: topmost table, table, is it a partition, bound of a partition, bytes of its rows, pages,
--   pages all visible, live rows, dead rows, scans from end to end, rows they read, rows found by
--   index, vacuums, analyzes, heap blocks found in memory, heap blocks read, index blocks found,
--   index blocks read, its own storage options, rows as last analyzed (-1: never).
SELECT r.relname, c.relname, c.relispartition,
       CASE WHEN c.relispartition THEN pg_get_expr(c.relpartbound, c.oid) END,
       s.bytes, s.bytes / current_setting('block_size')::integer, c.relallvisible,
       pg_stat_get_live_tuples(c.oid), pg_stat_get_dead_tuples(c.oid),
       pg_stat_get_numscans(c.oid), pg_stat_get_tuples_returned(c.oid), x.fetched,
       pg_stat_get_vacuum_count(c.oid) + pg_stat_get_autovacuum_count(c.oid),
       pg_stat_get_analyze_count(c.oid) + pg_stat_get_autoanalyze_count(c.oid),
       pg_stat_get_blocks_hit(c.oid),
       pg_stat_get_blocks_fetched(c.oid) - pg_stat_get_blocks_hit(c.oid),
       x.hit, x.read, coalesce(c.reloptions, '{{}}'), c.reltuples::float8
FROM pg_class AS c
JOIN pg_class AS r ON r.oid = coalesce(pg_partition_root(c.oid), c.oid)
CROSS JOIN LATERAL (SELECT coalesce(pg_relation_size(c.oid), 0) AS bytes) AS s
CROSS JOIN LATERAL (
    SELECT coalesce(sum(pg_stat_get_tuples_returned(i.indexrelid)), 0)::bigint AS fetched,
           coalesce(sum(pg_stat_get_blocks_hit(i.indexrelid)), 0)::bigint AS hit,
           coalesce(sum(pg_stat_get_blocks_fetched(i.indexrelid)
                        - pg_stat_get_blocks_hit(i.indexrelid)), 0)::bigint AS read
    FROM pg_index AS i WHERE i.indrelid = c.oid
) AS x
WHERE c.relnamespace = (SELECT oid FROM pg_namespace WHERE nspname = %(schema)s)
  AND c.relkind = 'r'
ORDER BY r.relname, c.relname
