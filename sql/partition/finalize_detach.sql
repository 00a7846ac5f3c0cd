-- What: finishes an interrupted DETACH CONCURRENTLY; not in a transaction.
ALTER TABLE {parent} DETACH PARTITION {partition} FINALIZE
