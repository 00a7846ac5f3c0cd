-- What: who is in the way of a session; without the right to see others, only their pids.
-- Params: pid.
-- Columns: pid, user, application, address, state, seconds since its transaction began, statement.
SELECT b.pid, a.usename, a.application_name, a.client_addr::text, a.state,
       coalesce(extract(epoch FROM clock_timestamp() - a.xact_start), 0)::float8,
       left(regexp_replace(a.query, '\s+', ' ', 'g'), 80)
FROM unnest(pg_blocking_pids(%(pid)s)) AS b (pid)
LEFT JOIN pg_stat_activity AS a ON a.pid = b.pid
