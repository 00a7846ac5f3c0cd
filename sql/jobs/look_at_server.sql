-- What: whether the server is a standby, and what time it is there.
-- Columns: is_standby, now.
SELECT pg_is_in_recovery(), clock_timestamp()
