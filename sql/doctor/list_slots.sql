-- What: replication slots, and what of the log they keep.
-- Columns: name, type, is active, bytes kept (NULL: none), state of its log, database.
SELECT s.slot_name::text, s.slot_type, s.active,
       (CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_lsn() END
        - s.restart_lsn)::bigint,
       s.wal_status, s.database::text
FROM pg_replication_slots AS s
