-- What: indexes that an interrupted REINDEX CONCURRENTLY has left behind, on tables of the schema and
--   their TOAST. One that is being built looks the same; its builder, whoever it is, holds a lock on
--   the table all the time, which all may see.
-- Params: schema; table (schema-qualified): only its own; NULL: all.
-- Columns: schema, name, bytes, oid of its table, name of the table it serves, whether the role may
--   drop it.
SELECT n.nspname, c.relname, pg_relation_size(c.oid), i.indrelid, t.relname,
       pg_has_role(c.relowner, 'USAGE') AND has_schema_privilege(n.oid, 'USAGE')
FROM pg_class AS t
JOIN pg_index AS i ON i.indrelid IN (t.oid, t.reltoastrelid)
JOIN pg_class AS c ON c.oid = i.indexrelid
JOIN pg_namespace AS n ON n.oid = c.relnamespace
WHERE t.relnamespace = to_regnamespace(quote_ident(%(schema)s)) AND t.relkind = 'r'
  AND (%(table)s::text IS NULL OR t.oid = to_regclass(%(table)s::text))
  AND NOT i.indisvalid AND c.relname ~ '_cc(new|old)[0-9]*$'
  AND NOT EXISTS (
    SELECT FROM pg_locks AS l
    WHERE l.locktype = 'relation' AND l.relation = i.indrelid AND l.granted
      AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
      AND l.mode NOT IN ('AccessShareLock', 'RowShareLock', 'RowExclusiveLock')
  )
ORDER BY c.relname
