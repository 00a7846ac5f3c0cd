-- What: whose snapshot is the oldest of this database: a vacuum leaves what it sees. Without the
--   right to see others only our own role's.
-- Columns: pid, user, application, address, state, seconds since it began, statement, since when.
SELECT a.pid, a.usename, a.application_name, a.client_addr::text, a.state,
       extract(epoch FROM clock_timestamp() - a.xact_start)::float8,
       left(regexp_replace(a.query, '\s+', ' ', 'g'), 80), a.xact_start
FROM pg_stat_activity AS a
WHERE a.backend_xmin IS NOT NULL AND a.pid <> pg_backend_pid() AND a.xact_start IS NOT NULL
  AND a.datname = current_database() AND a.query !~* '^\s*vacuum'
ORDER BY age(a.backend_xmin) DESC, a.xact_start
LIMIT 1
