-- What: the other sessions of clients, with their transactions and who is in their way. Of other
--   roles' sessions a role without pg_read_all_stats sees little.
-- Columns: pid, user, application, address, state, seconds in its transaction, seconds in its state,
--   seconds it has waited for a lock, age of the oldest snapshot it holds, pids in its way, statement.
SELECT a.pid, a.usename::text, a.application_name, a.client_addr::text, a.state,
       extract(epoch FROM clock_timestamp() - a.xact_start)::float8,
       extract(epoch FROM clock_timestamp() - a.state_change)::float8,
       (SELECT extract(epoch FROM clock_timestamp() - min(l.waitstart))::float8
        FROM pg_locks AS l WHERE l.pid = a.pid AND NOT l.granted),
       age(a.backend_xmin),
       CASE WHEN a.wait_event_type = 'Lock' THEN pg_blocking_pids(a.pid) ELSE '{{}}' END,
       left(regexp_replace(a.query, '[[:space:]]+', ' ', 'g'), 80)
FROM pg_stat_activity AS a
WHERE a.datname = current_database() AND a.pid <> pg_backend_pid()
  AND coalesce(a.backend_type, 'client backend') = 'client backend'
ORDER BY a.xact_start NULLS LAST, a.pid
