-- What: series by id.
-- Params: ids.
-- Columns: id, name, step in microseconds or NULL, labels.
SELECT id, name, (extract(epoch FROM step) * 1000000)::bigint, labels
FROM {series}
WHERE id = ANY (%(ids)s::integer[])
