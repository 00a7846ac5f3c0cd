-- What: the transactions that have a lock on the table of blocks, of which some may still run a plan
--   that does not know its newest partition.
-- Params: blocks (schema-qualified).
-- Columns: transaction.
SELECT DISTINCT l.virtualtransaction FROM pg_locks AS l
WHERE l.relation = %(blocks)s::regclass AND l.granted AND l.pid <> pg_backend_pid()
  AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
