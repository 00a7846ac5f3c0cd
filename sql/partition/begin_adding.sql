-- What: takes the lock that adding a partition takes, first and with our patience; of the parent
--   alone. Readers and writers go on.
LOCK TABLE ONLY {parent} IN SHARE UPDATE EXCLUSIVE MODE
