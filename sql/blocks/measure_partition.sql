-- What: the bytes of a partition's rows, and with its indexes.
-- Params: partition (schema-qualified).
-- Columns: bytes of the rows, bytes in all.
SELECT pg_relation_size(%(partition)s::regclass), pg_total_relation_size(%(partition)s::regclass)
