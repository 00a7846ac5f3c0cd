-- What: what a new store wants to know of the server.
-- Columns: version number, system identifier (it changes with a restore into a new cluster).
SELECT current_setting('server_version_num')::integer,
       (SELECT system_identifier FROM pg_control_system())
