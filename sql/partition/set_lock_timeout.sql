-- What: gives up a lock that is not free in time, so that readers do not queue behind us.
SET LOCAL lock_timeout = '5s'
