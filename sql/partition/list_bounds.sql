-- What: the partitions of some tables, with no look at their files but where a detach was begun.
-- Params: schema (quoted), parents (names).
-- Columns: parent, name, bound as PostgreSQL writes it (NULL if it was dropped since we began),
--   whether a detach was begun and not finished, bytes with indexes of such a one.
SELECT p.relname, c.relname, pg_get_expr(c.relpartbound, c.oid), i.inhdetachpending,
       CASE WHEN i.inhdetachpending THEN pg_total_relation_size(c.oid) ELSE 0 END
FROM pg_class AS p
JOIN pg_inherits AS i ON i.inhparent = p.oid
JOIN pg_class AS c ON c.oid = i.inhrelid
WHERE p.relnamespace = %(schema)s::regnamespace AND p.relname = ANY(%(parents)s::text[])
ORDER BY c.relname
