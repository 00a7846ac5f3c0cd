-- What: indexes of a partition that an interrupted REINDEX CONCURRENTLY has left behind. One that is
--   being built looks the same, and is not among them.
-- Params: partition (schema-qualified).
-- Columns: name.
SELECT c.relname
FROM pg_index AS i
JOIN pg_class AS c ON c.oid = i.indexrelid
WHERE i.indrelid = to_regclass(%(partition)s) AND NOT i.indisvalid
  AND c.relname ~ '_cc(new|old)[0-9]*$'
  AND NOT EXISTS (
    SELECT FROM pg_stat_progress_create_index AS p WHERE p.relid = i.indrelid
  )
