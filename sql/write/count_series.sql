-- What: how many of the series a batch was written to still exist in its dataset.
-- Params: dataset_id, ids.
-- Columns: how many.
SELECT count(*) FROM {series} WHERE dataset_id = %(dataset_id)s AND id = ANY (%(ids)s::integer[])
