-- What: how many points lie in a table of blocks.
-- Columns: how many.
SELECT coalesce(sum(b._rows), 0)::bigint FROM {table} AS b
