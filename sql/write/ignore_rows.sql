-- What: inserts the rows of a batch whose key does not exist yet.
INSERT INTO {points} AS t ({columns})
SELECT {values} FROM {source} AS s ORDER BY {key}
ON CONFLICT ({key_columns}) DO NOTHING
