-- What: foreign keys whose columns no index begins with: a delete of what they refer to reads the
--   whole table.
-- Params: schema.
-- Columns: table, topmost table, constraint, columns, bytes, has it partitions.
SELECT t.relname, r.relname, k.conname,
       (SELECT array_agg(a.attname::text ORDER BY n.place)
        FROM unnest(k.conkey) WITH ORDINALITY AS n (column_number, place)
        JOIN pg_attribute AS a ON a.attrelid = k.conrelid AND a.attnum = n.column_number),
       -- a parent's own size is nothing
       (SELECT coalesce(sum(pg_total_relation_size(p.relid)), 0)::bigint
        FROM (SELECT t.oid AS relid UNION SELECT relid FROM pg_partition_tree(t.oid)) AS p),
       t.relkind = 'p'
FROM pg_constraint AS k
JOIN pg_class AS t ON t.oid = k.conrelid
JOIN pg_class AS r ON r.oid = coalesce(pg_partition_root(t.oid), t.oid)
WHERE k.contype = 'f' AND k.conparentid = 0
  AND t.relnamespace = (SELECT oid FROM pg_namespace WHERE nspname = %(schema)s)
  AND NOT EXISTS (
    SELECT FROM pg_index AS i
    WHERE i.indrelid = k.conrelid AND i.indpred IS NULL AND i.indisvalid
      AND (i.indkey::smallint[])[0:cardinality(k.conkey) - 1] @> k.conkey
  )
ORDER BY t.relname, k.conname
