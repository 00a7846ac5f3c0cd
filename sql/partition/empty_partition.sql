-- What: empties a partition; its trigger logs what goes.
TRUNCATE {partition}
