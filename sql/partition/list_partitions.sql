-- What: the partitions of a dataset's rows, oldest first, with the space they take.
-- Params: parent (schema-qualified).
-- Columns: name, bound as PostgreSQL writes it, bytes with indexes, rows as last counted.
SELECT c.relname, pg_get_expr(c.relpartbound, c.oid), pg_total_relation_size(c.oid),
       -- the collected count is younger than reltuples, but lost in a crash or a restore
       coalesce(nullif(pg_stat_get_live_tuples(c.oid), 0), greatest(c.reltuples, 0)::bigint)
FROM pg_inherits AS i
JOIN pg_class AS c ON c.oid = i.inhrelid
WHERE i.inhparent = %(parent)s::regclass
  AND pg_get_expr(c.relpartbound, c.oid) IS NOT NULL  -- else it was dropped since we began
ORDER BY c.relname
