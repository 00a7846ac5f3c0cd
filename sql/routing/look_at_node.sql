-- What: what a node is, how far its log has come, and what a replica is connected to.
--   A replica's timeline is the newest it is known to follow: by its receiver where the role may
--   see that (pg_read_all_stats), else by what it has written down, which may be minutes old.
-- Columns: is_replica, sysid, timeline, lsn, received, receiver, is_paused, at,
--   is_read_only (transactions may not write unless they ask to).
SELECT r.is_replica, s.system_identifier,
       CASE WHEN r.is_replica
            THEN greatest(w.received_tli, m.min_recovery_end_timeline, c.timeline_id)
            ELSE ('x' || left(pg_walfile_name(pg_current_wal_insert_lsn()), 8))::bit(32)::integer
       END,
       CASE WHEN r.is_replica THEN pg_last_wal_replay_lsn()
            ELSE pg_current_wal_insert_lsn() END - '0/0'::pg_lsn,
       CASE WHEN r.is_replica THEN pg_last_wal_receive_lsn() - '0/0'::pg_lsn END,
       CASE WHEN r.is_replica THEN w.pid IS NOT NULL END,
       CASE WHEN r.is_replica THEN pg_is_wal_replay_paused() END,
       extract(epoch FROM clock_timestamp())::float8,
       current_setting('default_transaction_read_only')::boolean
FROM (SELECT pg_is_in_recovery() AS is_replica) AS r
CROSS JOIN pg_control_system() AS s
CROSS JOIN pg_control_recovery() AS m
CROSS JOIN pg_control_checkpoint() AS c
LEFT JOIN pg_stat_wal_receiver AS w ON true
