-- Run once, by the first start of the primary, in its database: roles that may do what they are
-- for and no more, and the slots that the replicas read from.

-- statements are kept as they were said, and two of these say passwords
SET pg_stat_statements.track_utility = off;
\set toolkit `cat "$TOOLKIT_PASSWORD_FILE"`
\set replication `cat "$REPLICATION_PASSWORD_FILE"`
\set pgbouncer `cat "$PGBOUNCER_PASSWORD_FILE"`

REVOKE ALL ON DATABASE market FROM PUBLIC;

-- the toolkit's: owns its schema. It sees all statistics, as it must on replicas and to advise.
CREATE ROLE toolkit LOGIN PASSWORD :'toolkit';
GRANT CONNECT, TEMPORARY ON DATABASE market TO toolkit;
GRANT pg_read_all_stats TO toolkit;
CREATE SCHEMA toolkit AUTHORIZATION toolkit;
CREATE EXTENSION pg_stat_statements;

-- the replicas'
CREATE ROLE replicator LOGIN REPLICATION PASSWORD :'replication';
SELECT pg_create_physical_replication_slot(name) FROM (VALUES ('replica1'), ('replica2')) AS s (name);

-- PgBouncer's: looks up the secret of who wants to log in, and nothing else; what
-- `toolkit pgbouncer render` prints
CREATE ROLE pgbouncer_auth LOGIN;
CREATE SCHEMA pgbouncer AUTHORIZATION CURRENT_USER;
CREATE FUNCTION pgbouncer.get_auth(wanted text) RETURNS TABLE (role text, secret text)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS
$$ SELECT rolname::text, rolpassword FROM pg_catalog.pg_authid
   WHERE rolname = wanted AND rolcanlogin AND NOT rolsuper AND NOT rolreplication
     AND coalesce(rolvaliduntil > pg_catalog.now(), true) $$;
REVOKE ALL ON FUNCTION pgbouncer.get_auth(text) FROM PUBLIC;
GRANT USAGE ON SCHEMA pgbouncer TO pgbouncer_auth;
GRANT EXECUTE ON FUNCTION pgbouncer.get_auth(text) TO pgbouncer_auth;
GRANT CONNECT ON DATABASE market TO pgbouncer_auth;
ALTER ROLE pgbouncer_auth PASSWORD :'pgbouncer';
