-- What: fills the sample with rows of some pages, the same pages each time.
-- Params: percent (of the pages).
INSERT INTO pg_temp.toolkit_sample ({columns})
SELECT {columns} FROM {table} TABLESAMPLE SYSTEM (%(percent)s) REPEATABLE (0)
