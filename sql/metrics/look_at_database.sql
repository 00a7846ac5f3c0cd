-- What: the server's connections, what runs longest in this database, and how its buffers do.
-- Columns: connections, connections that ordinary roles may have, seconds of the oldest statement
--   (not ours; null: none runs), sessions whose statements the role may not see, pages found in
--   buffers, pages that were not.
SELECT d.connections,
       current_setting('max_connections')::integer
       - current_setting('superuser_reserved_connections')::integer
       - coalesce(current_setting('reserved_connections', true), '0')::integer,
       a.seconds, a.hidden, d.hits, d.reads
FROM (
    SELECT sum(numbackends)::integer AS connections,
           coalesce(sum(blks_hit) FILTER (WHERE datname = current_database()), 0)::float8 AS hits,
           coalesce(sum(blks_read) FILTER (WHERE datname = current_database()), 0)::float8 AS reads
    FROM pg_stat_database
) AS d
CROSS JOIN (
    SELECT extract(epoch FROM clock_timestamp() - min(query_start) FILTER (
               WHERE state = 'active' AND backend_type = 'client backend'))::float8 AS seconds,
           count(*) FILTER (WHERE query = '<insufficient privilege>')::integer AS hidden
    FROM pg_stat_activity
    WHERE datname = current_database() AND pid <> pg_backend_pid()
) AS a
