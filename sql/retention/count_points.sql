-- What: how many points lie in a table of rows.
-- Columns: how many.
SELECT count(*) FROM {table}
