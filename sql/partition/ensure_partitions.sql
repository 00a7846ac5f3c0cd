-- What: adds the partitions a dataset lacks in [low, high). Params: dataset, low, high.
-- Columns: how many were made.
SELECT {ensure_partitions}(%(dataset)s, %(low)s, %(high)s)
