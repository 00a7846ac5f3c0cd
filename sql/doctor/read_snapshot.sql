-- What: the newest snapshot of what statements took.
-- Columns: when, since when they were counted, {{id: [calls, milliseconds]}}.
SELECT s.taken_at, s.counted_since, s.statements
FROM {snapshots} AS s
ORDER BY s.taken_at DESC, s.id DESC
LIMIT 1
