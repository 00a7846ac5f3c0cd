-- What: waits for writes under way, and lets none begin until the transaction ends. ONLY: the
--   partitions need no lock, who writes to one of them by name logs that, too.
LOCK TABLE ONLY {points}, ONLY {log} IN SHARE MODE
