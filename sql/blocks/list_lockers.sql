-- What: the transactions that have a lock on the table of blocks, of which some may still run a plan
--   that does not know its newest partition. Who rests and holds a snapshot is not among them: it is
--   older than what will move, and sees the points where they were.
-- Params: blocks (schema-qualified).
-- Columns: transaction.
SELECT DISTINCT l.virtualtransaction
FROM pg_locks AS l
LEFT JOIN pg_stat_activity AS a ON a.pid = l.pid
WHERE l.relation = %(blocks)s::regclass AND l.granted AND l.pid <> pg_backend_pid()
  AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
  AND (a.state = 'idle in transaction' AND a.backend_xmin IS NOT NULL) IS NOT TRUE
