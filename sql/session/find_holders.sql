-- What: who holds a lock on a table, or waits for one, beside which nobody else may maintain it: a
--   vacuum, an index build, a change of its definition. Without the right to see others, only pids.
-- Params: table (an oid).
-- Columns: pid, user, application, address, state, seconds since its transaction began, statement.
SELECT DISTINCT ON (l.pid) l.pid, a.usename, a.application_name, a.client_addr::text, a.state,
       coalesce(extract(epoch FROM clock_timestamp() - a.xact_start), 0)::float8,
       left(regexp_replace(nullif(a.query, '<insufficient privilege>'), '[[:space:]]+', ' ', 'g'), 80)
FROM pg_locks AS l
LEFT JOIN pg_stat_activity AS a ON a.pid = l.pid
WHERE l.locktype = 'relation' AND l.relation = %(table)s::oid AND l.pid <> pg_backend_pid()
  AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
  AND l.mode NOT IN ('AccessShareLock', 'RowShareLock', 'RowExclusiveLock')
ORDER BY l.pid
