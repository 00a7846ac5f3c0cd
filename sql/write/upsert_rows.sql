-- What: upserts a batch key by key: for batches over very many partitions, and when another
--   writer inserted one of our keys while MERGE was running.
INSERT INTO {points} AS t ({columns})
SELECT {values} FROM {source} AS s ORDER BY {key}
ON CONFLICT ({key_columns}) DO UPDATE SET {excluded}
WHERE ROW({old})::record *<> ROW({new_excluded})::record
