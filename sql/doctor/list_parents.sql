-- What: the tables of a schema that have partitions.
-- Params: schema.
-- Columns: table, partitions, how many of them are empty files, rows as last analyzed (-1: never).
SELECT c.relname, count(h.inhrelid),
       count(h.inhrelid) FILTER (WHERE pg_relation_size(h.inhrelid) = 0), c.reltuples::float8
FROM pg_class AS c
LEFT JOIN pg_inherits AS h ON h.inhparent = c.oid
WHERE c.relnamespace = (SELECT oid FROM pg_namespace WHERE nspname = %(schema)s)
  AND c.relkind = 'p'
GROUP BY c.relname, c.reltuples
ORDER BY c.relname
