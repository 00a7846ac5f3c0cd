-- What: how many checkpoints came by the clock, how many were requested (by who made a database or a
--   base backup, said CHECKPOINT, or because the log was full), and how much log was written (from
--   PostgreSQL 17 on).
-- Columns: timed, requested, when these were reset, max_wal_size in bytes, bytes of log after which
--   one is requested, bytes of log, when those were reset.
SELECT c.num_timed, c.num_requested, c.stats_reset, w.most,
       -- xlog.c, CalculateCheckpointSegments: the next one is to end before the log is full
       w.most / (1 + current_setting('checkpoint_completion_target')::float8),
       l.wal_bytes::float8, l.stats_reset
FROM pg_stat_checkpointer AS c
CROSS JOIN pg_stat_wal AS l
CROSS JOIN (SELECT pg_size_bytes(current_setting('max_wal_size'))) AS w (most)
