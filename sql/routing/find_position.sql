-- What: where a primary's log is now: behind everything committed before.
-- Columns: sysid, timeline, lsn, segment.
SELECT s.system_identifier,
       ('x' || left(pg_walfile_name(pg_current_wal_insert_lsn()), 8))::bit(32)::integer,
       pg_current_wal_insert_lsn() - '0/0'::pg_lsn,
       pg_size_bytes(current_setting('wal_segment_size'))
FROM pg_control_system() AS s
