-- What: lets others do what goes by a name. Params: name. Columns: whether it was taken.
SELECT pg_advisory_unlock(1953194605, hashtext(%(name)s))
