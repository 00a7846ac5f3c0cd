-- What: which rights roles have, by themselves, by PUBLIC or by roles they are members of.
-- Params: schema, roles; and an element a right: kinds, names, privileges, columns ('': of the whole).
-- Columns: role, an element a right: whether it has it, NULL where there is no such thing.
SELECT a.rolname, array_agg(CASE w.kind
    WHEN 'database' THEN has_database_privilege(
        a.oid, (SELECT d.oid FROM pg_database AS d WHERE d.datname = w.name), w.privilege)
    WHEN 'schema' THEN has_schema_privilege(a.oid, n.oid, w.privilege)
    WHEN 'table' THEN CASE WHEN w.col = '' THEN has_table_privilege(a.oid, c.oid, w.privilege)
                           ELSE has_column_privilege(a.oid, c.oid, w.col, w.privilege) END
    WHEN 'function' THEN has_function_privilege(a.oid, f.oid, w.privilege)
    WHEN 'member' THEN pg_has_role(
        a.oid, (SELECT m.oid FROM pg_roles AS m WHERE m.rolname = w.name), w.privilege)
    END ORDER BY w.number)
FROM pg_roles AS a
CROSS JOIN unnest(%(kinds)s::text[], %(names)s::text[], %(privileges)s::text[], %(columns)s::text[])
    WITH ORDINALITY AS w (kind, name, privilege, col, number)
LEFT JOIN pg_namespace AS n ON n.nspname = %(schema)s
LEFT JOIN pg_class AS c ON c.relnamespace = n.oid AND c.relname = w.name AND w.kind = 'table'
LEFT JOIN pg_proc AS f ON f.pronamespace = n.oid AND f.proname = w.name AND w.kind = 'function'
WHERE a.rolname = ANY (%(roles)s::text[])
GROUP BY a.rolname
ORDER BY a.rolname
