-- What: partitions that somebody began to detach and did not finish.
-- Params: parent (schema-qualified).
-- Columns: name, bytes with indexes.
SELECT c.relname, pg_total_relation_size(c.oid)
FROM pg_inherits AS i
JOIN pg_class AS c ON c.oid = i.inhrelid
WHERE i.inhparent = %(parent)s::regclass AND i.inhdetachpending
ORDER BY c.relname
