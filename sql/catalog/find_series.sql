-- What: the series of a dataset by name.
-- Params: dataset_id, names.
-- Columns: id, name, step in microseconds or NULL, labels.
SELECT id, name, (extract(epoch FROM step) * 1000000)::bigint, labels
FROM {series}
WHERE dataset_id = %(dataset_id)s AND name = ANY (%(names)s::text[])
