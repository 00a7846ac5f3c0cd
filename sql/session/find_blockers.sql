-- What: who is in the way of a session; without the right to see others, only who they are.
--   Only where it waits for a lock: to find who holds it stops all who take one for a moment.
-- Params: pid.
-- Columns: pid (0 is a prepared transaction), user, application or what kind of process it is,
--   address, state, seconds since its transaction began, statement.
SELECT b.pid, a.usename, coalesce(nullif(a.application_name, ''),
                                  nullif(a.backend_type, 'client backend')),
       a.client_addr::text, a.state,
       coalesce(extract(epoch FROM clock_timestamp() - a.xact_start), 0)::float8,
       CASE WHEN a.state IS NOT NULL THEN left(regexp_replace(a.query, '[[:space:]]+', ' ', 'g'), 80) END
FROM (SELECT DISTINCT unnest(pg_blocking_pids(w.pid)) FROM pg_stat_activity AS w
      WHERE w.pid = %(pid)s AND w.wait_event_type = 'Lock') AS b (pid)
LEFT JOIN pg_stat_activity AS a ON a.pid = b.pid
ORDER BY b.pid
