-- What: how old the oldest transaction is that each database, and each table of a schema, holds on to.
-- Params: schema.
-- Columns: kind (database, table), topmost table, name, age in transactions, age in multixacts.
SELECT 'database', d.datname::text, d.datname::text, age(d.datfrozenxid), mxid_age(d.datminmxid)
FROM pg_database AS d
UNION ALL
SELECT 'table', r.relname::text, c.relname::text, greatest(age(c.relfrozenxid), age(t.relfrozenxid)),
       greatest(mxid_age(c.relminmxid), mxid_age(t.relminmxid))
FROM pg_class AS c
JOIN pg_class AS r ON r.oid = coalesce(pg_partition_root(c.oid), c.oid)
LEFT JOIN pg_class AS t ON t.oid = c.reltoastrelid
WHERE c.relnamespace = (SELECT oid FROM pg_namespace WHERE nspname = %(schema)s)
  AND c.relkind = 'r'
