-- What: the partitions of a dataset's blocks, with what they hold; counts the blocks.
-- Params: parent (schema-qualified).
-- Columns: name, bound as PostgreSQL writes it, bytes with indexes, blocks, their points.
SELECT c.relname, pg_get_expr(c.relpartbound, c.oid), pg_total_relation_size(c.oid),
       coalesce(n.blocks, 0), coalesce(n.points, 0)
FROM pg_inherits AS i
JOIN pg_class AS c ON c.oid = i.inhrelid
LEFT JOIN (
    SELECT b.tableoid, count(*) AS blocks, sum(b._rows)::bigint AS points
    FROM {blocks} AS b GROUP BY b.tableoid
) AS n ON n.tableoid = c.oid
WHERE i.inhparent = %(parent)s::regclass
  AND pg_get_expr(c.relpartbound, c.oid) IS NOT NULL  -- else it was dropped since we began
