-- What: how many sessions a server has for everybody, and how many others than some roles have now.
-- Params: roles.
-- Columns: limit, reserved, others.
SELECT current_setting('max_connections')::int,
       current_setting('superuser_reserved_connections')::int
       + coalesce(current_setting('reserved_connections', true)::int, 0),
       (SELECT count(*)::int FROM pg_stat_activity
        WHERE backend_type = 'client backend' AND usename <> ALL (%(roles)s::name[]))
