-- What: the indexes that a snapshot of so many seconds ago, or an older one, has.
-- Params: age.
-- Columns: name.
SELECT DISTINCT unnest(s.indexes)
FROM {snapshots} AS s
WHERE s.taken_at <= clock_timestamp() - make_interval(secs => %(age)s)
