-- What: how many of the series a batch was written to still exist in its dataset, and before which
--   time nothing may be written to it (NULL: there is none).
-- Params: dataset_id, ids.
-- Columns: how many, the time.
SELECT count(*), (SELECT frozen_before FROM {dataset} WHERE id = %(dataset_id)s)
FROM {series} WHERE dataset_id = %(dataset_id)s AND id = ANY (%(ids)s::integer[])
