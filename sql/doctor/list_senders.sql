-- What: the standbys that receive a server's log, and how far behind each is. A role without
--   pg_read_all_stats sees that they are there, and no more.
-- Columns: name, state, bytes it has yet to replay, seconds it is behind.
SELECT coalesce(nullif(r.application_name, ''), r.pid::text), r.state,
       (CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_lsn() END
        - r.replay_lsn)::bigint,
       extract(epoch FROM r.replay_lag)::float8
FROM pg_stat_replication AS r
