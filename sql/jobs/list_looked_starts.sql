-- What: where the parts of a dataset begin that some job has looked at.
-- Params: dataset (its name).
-- Columns: where a part begins.
SELECT DISTINCT l.start
FROM {looked} AS l
JOIN {dataset} AS d ON d.id = l.dataset_id
WHERE d.name = %(dataset)s
