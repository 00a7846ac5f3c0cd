-- What: a table of this transaction with the same indexes as another, to see how large they are made
--   afresh.
CREATE TEMPORARY TABLE toolkit_sample (
    LIKE {table} INCLUDING INDEXES INCLUDING STORAGE INCLUDING COMPRESSION
) ON COMMIT DROP
