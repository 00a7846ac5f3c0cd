-- What: tables that are called as partitions of a dataset's tables, and are none.
-- Params: schema, parents (names of its partitioned tables).
-- Columns: name, the parent's name, bytes with indexes, comment or NULL.
SELECT c.relname::text, p.name, pg_total_relation_size(c.oid), obj_description(c.oid, 'pg_class')
FROM unnest(%(parents)s::text[]) AS p (name)
JOIN pg_class AS c ON c.relname ~ '_p[0-9]{{8}}$' AND left(c.relname::text, -10) = p.name
JOIN pg_namespace AS n ON n.oid = c.relnamespace AND n.nspname = %(schema)s
WHERE c.relkind = 'r'
  AND NOT EXISTS (SELECT FROM pg_inherits AS i WHERE i.inhrelid = c.oid)
ORDER BY 1
