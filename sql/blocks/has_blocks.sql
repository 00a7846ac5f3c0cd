-- What: whether there are blocks in [start, end): then all that runs knows their partition.
-- Params: start, end.
-- Columns: whether.
SELECT EXISTS (SELECT FROM {blocks} AS b WHERE b.lo >= %(start)s AND b.lo < %(end)s)
