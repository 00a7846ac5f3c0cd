-- What: the partitions that lack a part of an index that was made ON ONLY their parent.
-- Params: schema.
-- Columns: index, partition, the index's definition after the table.
SELECT c.relname, q.relname, substring(pg_get_indexdef(c.oid) FROM ' (USING .*)$')
FROM pg_index AS i
JOIN pg_class AS c ON c.oid = i.indexrelid AND c.relkind = 'I' AND NOT i.indisvalid
CROSS JOIN LATERAL pg_partition_tree(i.indrelid) AS f
JOIN pg_class AS q ON q.oid = f.relid
WHERE c.relnamespace = (SELECT oid FROM pg_namespace WHERE nspname = %(schema)s) AND f.isleaf
  AND NOT EXISTS (
    SELECT FROM pg_index AS p
    JOIN pg_inherits AS h ON h.inhrelid = p.indexrelid
    WHERE p.indrelid = f.relid AND h.inhparent = c.oid
  )
ORDER BY c.relname, q.relname
