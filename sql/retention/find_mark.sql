-- What: before which time the points of a dataset are frozen.
-- Params: dataset, its name.
-- Columns: the dataset's id, the time or NULL.
SELECT d.id, d.frozen_before FROM {dataset} AS d WHERE d.name = %(dataset)s
