-- What: makes the indexes of an emptied partition anew: a vacuum leaves them as large as they were.
REINDEX TABLE CONCURRENTLY {partition}
