-- What: the partitions of a table with what is known of them, oldest first.
-- Params: parent (schema-qualified).
-- Columns: name, bound as PostgreSQL writes it, bytes with indexes, whether its detaching has begun.
SELECT c.relname, pg_get_expr(c.relpartbound, c.oid), pg_total_relation_size(c.oid),
       i.inhdetachpending
FROM pg_inherits AS i
JOIN pg_class AS c ON c.oid = i.inhrelid
WHERE i.inhparent = %(parent)s::regclass
  AND pg_get_expr(c.relpartbound, c.oid) IS NOT NULL  -- else it was dropped since we began
ORDER BY c.relname
