-- What: removes an index that nobody can use.
DROP INDEX CONCURRENTLY IF EXISTS {index}
