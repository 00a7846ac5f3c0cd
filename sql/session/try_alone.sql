-- What: whether nobody else does what goes by a name; until the connection is closed.
-- Params: name.
-- Columns: whether.
SELECT pg_try_advisory_lock(1953194605, hashtext(%(name)s))
