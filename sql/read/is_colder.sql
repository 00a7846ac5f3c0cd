-- What: whether blocks hold points of a range that was taken to be without them: asked in the
--   statement itself, so of its snapshot; an empty range has none. It costs nothing where their
--   partitions are others.
-- Params: end; the start, and where the partition begins that it lies in: start and cold_start, or
--   of the part of a range that was taken to be without blocks hot_start and hot_floor.
EXISTS (SELECT FROM {blocks} AS b
        WHERE b.series_id = s.id AND b.lo >= {floor} AND b.lo < %(end)s AND b.hi > {start}
          AND {start} < %(end)s)
