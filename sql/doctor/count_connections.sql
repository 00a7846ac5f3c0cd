-- What: how many connections there are, and how many there may be for who has no special right.
-- Columns: connections, limit.
SELECT (SELECT sum(d.numbackends)::bigint FROM pg_stat_database AS d WHERE d.datid <> 0),
       current_setting('max_connections')::integer
           - current_setting('superuser_reserved_connections')::integer
           - coalesce(nullif(current_setting('reserved_connections', true), ''), '0')::integer
