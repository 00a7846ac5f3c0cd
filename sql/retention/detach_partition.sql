-- What: takes a partition out of its table beside readers and writers; not in a transaction. It
--   waits for who has looked at the table in a transaction that has not ended.
ALTER TABLE {parent} DETACH PARTITION {partition} CONCURRENTLY
