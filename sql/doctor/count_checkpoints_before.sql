-- What: how many checkpoints came by the clock, and how many because the log was full (before
--   PostgreSQL 17).
-- Columns: timed, requested, when that was reset, max_wal_size in bytes.
SELECT c.checkpoints_timed, c.checkpoints_req, c.stats_reset,
       pg_size_bytes(current_setting('max_wal_size'))
FROM pg_stat_bgwriter AS c
