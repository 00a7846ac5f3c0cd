-- What: makes sure a rollup has the partition of a year. Params: relation, every, low, high.
-- Columns: how many were made.
SELECT {add_partitions}(%(relation)s, %(every)s, %(low)s, %(high)s, NULL)
