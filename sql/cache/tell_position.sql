-- What: where a primary's log is, as two columns of another statement: timeline and LSN.
('x' || left(pg_walfile_name(pg_current_wal_insert_lsn()), 8))::bit(32)::integer,
pg_current_wal_insert_lsn() - '0/0'::pg_lsn
