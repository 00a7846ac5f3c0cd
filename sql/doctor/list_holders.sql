-- What: who keeps vacuum from removing what is dead: sessions of any database, replicas with feedback,
--   slots and prepared transactions.
-- Columns: kind, name, age in transactions, what ends it (a pid, or a name).
SELECT 'session', coalesce(nullif(a.application_name, ''), a.usename, 'process') || ' ' || a.pid,
       greatest(age(a.backend_xmin), age(a.backend_xid)), a.pid::text
FROM pg_stat_activity AS a
WHERE a.pid <> pg_backend_pid() AND (a.backend_xmin IS NOT NULL OR a.backend_xid IS NOT NULL)
UNION ALL
SELECT 'slot', s.slot_name::text, greatest(age(s.xmin), age(s.catalog_xmin)), s.slot_name::text
FROM pg_replication_slots AS s WHERE s.xmin IS NOT NULL OR s.catalog_xmin IS NOT NULL
UNION ALL
SELECT 'prepared', p.gid, age(p.transaction), p.gid FROM pg_prepared_xacts AS p
ORDER BY 3 DESC
