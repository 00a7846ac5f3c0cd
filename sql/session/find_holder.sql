-- What: who does what goes by a name, alone, and for how long: its session is there for that alone,
--   and may be idle while the work goes on in others.
-- Params: name.
-- Columns: pid, user, application, address, running (NULL: hidden from this role), seconds since
--   its session began, statement (none: it is of no interest).
SELECT a.pid, a.usename, a.application_name, a.client_addr::text,
       CASE WHEN a.backend_start IS NOT NULL THEN 'running' END,
       extract(epoch FROM clock_timestamp() - a.backend_start)::float8, NULL
FROM pg_locks AS l
JOIN pg_stat_activity AS a ON a.pid = l.pid
WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 2
  AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
  AND l.classid = 1953194605 AND l.objid::bigint = hashtext(%(name)s)::bigint & 4294967295
