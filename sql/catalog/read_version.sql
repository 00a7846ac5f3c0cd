-- What: the migration the schema is at. Columns: revision.
SELECT version_num FROM {toolkit_version}
