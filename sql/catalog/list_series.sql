-- What: the series of a dataset that carry all the given labels, by name.
-- Params: dataset_id, labels (a JSON object; {} means all).
-- Columns: id, name, step in microseconds or NULL, labels.
SELECT id, name, (extract(epoch FROM step) * 1000000)::bigint, labels
FROM {series}
WHERE dataset_id = %(dataset_id)s AND labels @> %(labels)s::jsonb
ORDER BY name
