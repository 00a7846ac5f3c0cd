-- What: how far a replica has replayed, and whether it still is one.
-- Columns: is_replica, lsn.
SELECT pg_is_in_recovery(), pg_last_wal_replay_lsn() - '0/0'::pg_lsn
