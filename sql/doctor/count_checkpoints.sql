-- What: how many checkpoints came by the clock, and how many because the log was full (from
--   PostgreSQL 17 on).
-- Columns: timed, requested, when that was reset, max_wal_size in bytes.
SELECT c.num_timed, c.num_requested, c.stats_reset,
       pg_size_bytes(current_setting('max_wal_size'))
FROM pg_stat_checkpointer AS c
