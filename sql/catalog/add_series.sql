-- What: makes the series that do not exist yet; a writer beside us may make the same ones.
-- Params: dataset_id, names, steps (interval or NULL).
INSERT INTO {series} (dataset_id, name, step)
SELECT %(dataset_id)s, n.name, n.step
FROM unnest(%(names)s::text[], %(steps)s::interval[]) AS n (name, step)
ORDER BY n.name
ON CONFLICT (dataset_id, name) DO NOTHING
