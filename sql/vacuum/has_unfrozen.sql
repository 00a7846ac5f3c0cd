-- What: whether the last pages of a table hold rows, and one of them is not frozen: it is younger
--   than what the table says all its rows are older than.
-- Params: table (an oid), tail (the first of the pages, as a row's address).
-- Columns: whether there are rows, whether one is not frozen.
SELECT count(*) > 0, coalesce(bool_or(age(r.xmin) BETWEEN 0 AND c.age), false)
FROM {table} AS r
CROSS JOIN (SELECT age(relfrozenxid) FROM pg_class WHERE oid = %(table)s::oid) AS c
WHERE r.ctid >= %(tail)s::tid
