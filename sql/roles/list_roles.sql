-- What: the roles that may use a schema; not those of the system, nor superusers, who may all.
-- Params: schema.
-- Columns: name.
SELECT a.rolname
FROM pg_roles AS a
JOIN pg_namespace AS n ON n.nspname = %(schema)s
WHERE a.rolname !~ '^pg_' AND NOT a.rolsuper AND has_schema_privilege(a.oid, n.oid, 'USAGE')
ORDER BY a.rolname
