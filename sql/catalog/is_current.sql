-- What: whether a dataset is still the one that a store remembers.
-- Params: dataset_id, name.
-- Columns: true or false.
SELECT EXISTS (SELECT FROM {dataset} WHERE id = %(dataset_id)s AND name = %(name)s)
