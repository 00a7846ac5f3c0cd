-- What: what a node is, where the server does not tell how far its log has come.
-- Columns: is_replica, at, is_read_only.
SELECT pg_is_in_recovery(), extract(epoch FROM clock_timestamp())::float8,
       current_setting('default_transaction_read_only')::boolean
