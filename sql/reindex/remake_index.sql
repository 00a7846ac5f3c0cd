-- What: makes an index anew while readers and writers go on; outside a transaction, as the owner.
REINDEX INDEX CONCURRENTLY {index}
