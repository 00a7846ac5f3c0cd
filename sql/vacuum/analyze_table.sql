-- What: counts a table's rows and values for the planner. Of a parent: what its partitions hold
--   together, which autovacuum never does; ONLY, from 18 on, leaves them alone meanwhile.
ANALYZE (SKIP_LOCKED) {only}{table}
