-- What: whose the toolkit's schema is, which needs no right there; no row where it is not migrated.
-- Params: schema.
-- Columns: database, owner of the tables, the role that asks.
SELECT current_database(), pg_get_userbyid(c.relowner), current_user
FROM pg_namespace AS n
JOIN pg_class AS c ON c.relnamespace = n.oid AND c.relname = 'dataset'
JOIN pg_class AS v ON v.relnamespace = n.oid AND v.relname = 'performance_summary'
WHERE n.nspname = %(schema)s
