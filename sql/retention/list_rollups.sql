-- What: the rollups of a dataset, finest first.
-- Params: dataset, its name.
-- Columns: id, step, relation.
SELECT r.id, r.step, r.relation
FROM {rollup} AS r JOIN {dataset} AS d ON d.id = r.dataset_id
WHERE d.name = %(dataset)s
ORDER BY r.width
