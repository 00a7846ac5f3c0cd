-- What: how full the pages of an index are; reads all of it.
-- Params: index (an oid).
-- Columns: bytes, internal pages, leaf pages, how full these are, in percent (NaN without any).
SELECT s.index_size, s.internal_pages, s.leaf_pages, s.avg_leaf_density
FROM {pgstatindex}(%(index)s::oid::regclass) AS s
