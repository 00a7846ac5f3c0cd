-- What: whether the last pages of a table hold a row that is not frozen: one that is younger than
--   what the table says all its rows are older than.
-- Params: table (an oid), tail (the first of the pages, as a row's address).
-- Columns: whether.
SELECT EXISTS (
    SELECT FROM {table} AS r
    WHERE r.ctid >= %(tail)s::tid AND age(r.xmin) BETWEEN 0 AND (
        SELECT age(c.relfrozenxid) FROM pg_class AS c WHERE c.oid = %(table)s::oid)
)
