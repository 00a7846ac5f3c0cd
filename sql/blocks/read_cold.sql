-- What: until when blocks may hold points of a dataset.
-- Params: dataset_id.
-- Columns: the time; NULL where there are none.
SELECT d.cold_to FROM {dataset} AS d WHERE d.id = %(dataset_id)s
