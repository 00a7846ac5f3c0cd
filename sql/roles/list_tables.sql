-- What: the datasets of a schema and the tables of their rollups, by their names in the system's
--   catalog: who may read nothing there may know what it lacks.
-- Params: schema.
-- Columns: dataset, rollups.
SELECT d.relname, coalesce(array_agg(r.relname ORDER BY r.oid) FILTER (WHERE r.oid IS NOT NULL), '{{}}')
FROM pg_class AS d
JOIN pg_namespace AS n ON n.oid = d.relnamespace
JOIN pg_class AS l ON l.relnamespace = n.oid AND l.relname = d.relname || '_log'
LEFT JOIN pg_class AS r ON r.relnamespace = n.oid AND r.relkind = 'p'
    AND r.relname ~ ('^' || d.relname || '_[0-9]+[smhdwMy]$')
WHERE n.nspname = %(schema)s AND d.relkind = 'p'
GROUP BY d.oid, d.relname
ORDER BY d.oid
