-- What: whether a partition holds rows. Statistics would only guess, and be late.
-- Columns: whether.
SELECT EXISTS (SELECT FROM {partition})
