-- What: who sees the oldest rows of this database, which a vacuum leaves: sessions, standbys,
--   prepared transactions, replication slots; the oldest first. Last, where others' sessions may
--   not be looked into, that there are such.
-- Params: table, an oid; NULL: none.
-- Columns: what is no session, in words; pid, user, application, address, state, seconds since it
--   began, statement; when it began (NULL: not known); whether it is older than every row of the
--   table that is not frozen (NULL: not known).
SELECT o.said, o.pid, o.usename, o.application_name, o.address, o.state,
       extract(epoch FROM clock_timestamp() - o.began)::float8, o.query, o.began,
       o.age >= (SELECT age(c.relfrozenxid) FROM pg_class AS c WHERE c.oid = %(table)s::oid)
FROM (
    SELECT NULL AS said, a.pid, a.usename, a.application_name, a.client_addr::text AS address,
           a.state, left(regexp_replace(a.query, '[[:space:]]+', ' ', 'g'), 80) AS query,
           a.xact_start AS began, greatest(age(a.backend_xmin), age(a.backend_xid)) AS age
    FROM pg_stat_activity AS a
    WHERE (a.backend_xmin IS NOT NULL OR a.backend_xid IS NOT NULL)
      AND a.pid <> pg_backend_pid() AND a.xact_start IS NOT NULL
      AND a.datname = current_database() AND a.query !~* '^[[:space:]]*vacuum'
    UNION ALL
    SELECT format('the standby %%L, whose readers are waited for', r.application_name),
           NULL, NULL, NULL, NULL, NULL, NULL, NULL, age(r.backend_xmin)
    FROM pg_stat_replication AS r
    WHERE r.backend_xmin IS NOT NULL
    UNION ALL
    SELECT format('the prepared transaction %%L of user %%s; ROLLBACK PREPARED %%1$L ends it',
                  p.gid, p.owner),
           NULL, NULL, NULL, NULL, NULL, NULL, p.prepared, age(p.transaction)
    FROM pg_prepared_xacts AS p
    WHERE p.database = current_database()
    UNION ALL
    SELECT format('the replication slot %%L%%s', s.slot_name,
                  CASE WHEN s.active THEN '' ELSE ', which nobody reads' END),
           NULL, NULL, NULL, NULL, NULL, NULL, NULL, age(s.xmin)
    FROM pg_replication_slots AS s
    WHERE s.xmin IS NOT NULL
    UNION ALL
    SELECT 'whose it is may not be seen', NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL
    WHERE EXISTS (SELECT 1 FROM pg_stat_activity AS a
                  WHERE a.datname = current_database() AND a.query = '<insufficient privilege>')
       OR EXISTS (SELECT 1 FROM pg_stat_replication AS r WHERE r.state IS NULL)
) AS o
ORDER BY o.age DESC NULLS LAST, o.began
