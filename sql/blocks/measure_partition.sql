-- What: the bytes of a partition's rows, and with its indexes; none of one that is gone.
-- Params: partition (schema-qualified).
-- Columns: bytes of the rows, bytes in all.
SELECT coalesce(pg_relation_size(to_regclass(%(partition)s)), 0),
       coalesce(pg_total_relation_size(to_regclass(%(partition)s)), 0)
