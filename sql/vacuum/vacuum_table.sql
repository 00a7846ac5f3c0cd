-- What: removes a table's dead rows and says which pages all can see; outside a transaction, as the
--   owner. Gives no space back: that takes a lock that readers of a replica wait for, too.
VACUUM (TRUNCATE OFF, PARALLEL 0{options}) {table}
