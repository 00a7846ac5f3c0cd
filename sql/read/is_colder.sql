-- What: whether blocks hold points of a range that was taken to be without them: asked in the
--   statement itself, so of its snapshot. It costs nothing where their partitions are others.
-- Params: start, end; cold_start, see fetch_blocks.
EXISTS (SELECT FROM {blocks} AS b
        WHERE b.series_id = s.id AND b.lo >= %(cold_start)s AND b.lo < %(end)s AND b.hi > %(start)s)
