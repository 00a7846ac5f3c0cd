-- What: the revision of the toolkit's schema.
-- Columns: version_num.
SELECT version_num FROM {table}
