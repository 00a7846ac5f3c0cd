-- What: replication slots that nobody reads from, and what they hold back.
-- Params: none.
-- Columns: name, kind (physical or logical), the state of its WAL, bytes held back, whether it is
--   lost to who used it.
SELECT s.slot_name::text, s.slot_type, coalesce(s.wal_status, 'unknown'),
       coalesce(pg_wal_lsn_diff(pg_current_wal_lsn(), s.restart_lsn), 0)::bigint,
       coalesce(s.wal_status = 'lost', false)
FROM pg_replication_slots AS s
WHERE NOT s.active AND NOT s.temporary
ORDER BY 4 DESC, 1
