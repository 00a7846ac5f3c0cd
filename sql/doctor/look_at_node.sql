-- What: what a node says of itself, and what our role may see there.
-- Columns: now, version, role, database, is_standby, sees_all (other roles' sessions), when its
--   statistics were reset (NULL: never), is_near (we come from its own address), schema of pg_stat_statements (NULL: not there),
--   is_local (toolkit up made the server).
SELECT clock_timestamp(), current_setting('server_version_num')::integer, current_user::text,
       current_database()::text, pg_is_in_recovery(), pg_has_role('pg_read_all_stats', 'USAGE'),
       (SELECT d.stats_reset FROM pg_stat_database AS d WHERE d.datname = current_database()),
       inet_client_addr() IS NOT DISTINCT FROM inet_server_addr(),
       (SELECT n.nspname::text FROM pg_extension AS e
        JOIN pg_namespace AS n ON n.oid = e.extnamespace WHERE e.extname = 'pg_stat_statements'),
       coalesce(current_setting('toolkit.local', true), '') = 'on'
