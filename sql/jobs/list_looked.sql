-- What: which parts of a dataset a job has looked at, and when.
-- Params: job, dataset (its name).
-- Columns: where the part begins, up to which series (NULL: all), when.
SELECT l.start, l.series_to, l.at
FROM {looked} AS l
JOIN {dataset} AS d ON d.id = l.dataset_id
WHERE l.job = %(job)s AND d.name = %(dataset)s
