-- What: whether rollups have buckets of any series of a dataset in [start, end).
-- Params: dataset, its name; start, end.
-- Columns: whether.
SELECT EXISTS (
    SELECT FROM {series} AS s JOIN {dataset} AS d ON d.id = s.dataset_id
    WHERE d.name = %(dataset)s AND (false {has_buckets})
)
