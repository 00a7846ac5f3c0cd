-- What: who sees the oldest rows of this database, which a vacuum leaves: a session, a prepared
--   transaction, a replication slot. Of sessions, without the right to see others, only our own
--   role's.
-- Columns: what is no session, in words; pid, user, application, address, state, seconds since it
--   began, statement.
SELECT o.said, o.pid, o.usename, o.application_name, o.address, o.state, o.seconds, o.query
FROM (
    SELECT NULL AS said, a.pid, a.usename, a.application_name, a.client_addr::text AS address,
           a.state, extract(epoch FROM clock_timestamp() - a.xact_start)::float8 AS seconds,
           left(regexp_replace(a.query, '\s+', ' ', 'g'), 80) AS query, age(a.backend_xmin)
    FROM pg_stat_activity AS a
    WHERE a.backend_xmin IS NOT NULL AND a.pid <> pg_backend_pid() AND a.xact_start IS NOT NULL
      AND a.datname = current_database() AND a.query !~* '^\s*vacuum'
    UNION ALL
    SELECT format('the prepared transaction %L of user %s; ROLLBACK PREPARED %1$L ends it',
                  p.gid, p.owner),
           NULL, NULL, NULL, NULL, NULL, extract(epoch FROM clock_timestamp() - p.prepared)::float8,
           NULL, age(p.transaction)
    FROM pg_prepared_xacts AS p
    WHERE p.database = current_database()
    UNION ALL
    SELECT format('the replication slot %L%s', s.slot_name,
                  CASE WHEN s.active THEN '' ELSE ', which nobody reads' END),
           NULL, NULL, NULL, NULL, NULL, NULL, NULL, age(s.xmin)
    FROM pg_replication_slots AS s
    WHERE s.xmin IS NOT NULL
) AS o
ORDER BY o.age DESC, o.seconds DESC
LIMIT 1
