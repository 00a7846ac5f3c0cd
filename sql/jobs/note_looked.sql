-- What: notes that a job has looked at a part of a dataset.
-- Params: job, dataset (its name), start; series_to, up to which series (NULL: all).
INSERT INTO {looked} AS l (job, dataset_id, start, series_to)
SELECT %(job)s, d.id, %(start)s, %(series_to)s::integer FROM {dataset} AS d WHERE d.name = %(dataset)s
ON CONFLICT (job, dataset_id, start) DO UPDATE SET series_to = excluded.series_to, at = now()
