-- What: makes the sample's indexes afresh, as a reindex does.
REINDEX TABLE pg_temp.toolkit_sample
