-- What: removes an emptied partition.
DROP TABLE {partition}
