-- What: who does what goes by a name, alone.
-- Params: name.
-- Columns: pid, user, application, address, state, seconds in it, statement.
SELECT a.pid, a.usename, a.application_name, a.client_addr::text, a.state,
       extract(epoch FROM clock_timestamp() - a.state_change)::float8, NULL
FROM pg_locks AS l
JOIN pg_stat_activity AS a ON a.pid = l.pid
WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 2
  AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
  AND l.classid = 1953194605 AND l.objid::bigint = hashtext(%(name)s)::bigint & 4294967295
