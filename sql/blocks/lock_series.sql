-- What: waits until nobody else makes, rewrites or removes blocks of series in the same partitions,
--   nor writes what has to look at them first; until the transaction ends. Series share locks, so that
--   there are few. A statement of its own: the next one sees what the holders before us have committed.
-- Params: locks.
-- Columns: nothing, a row a lock.
SELECT pg_advisory_xact_lock{shared}({room}, l.lock)
FROM (SELECT lock FROM unnest(%(locks)s::integer[]) AS u (lock) ORDER BY lock) AS l
