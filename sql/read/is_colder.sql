-- What: whether blocks may hold points of a range that was taken to be without them: asked in the
--   statement itself, so of its snapshot.
-- Params: start.
EXISTS (SELECT FROM {dataset} AS d WHERE d.id = {id} AND d.cold_to > %(start)s)
