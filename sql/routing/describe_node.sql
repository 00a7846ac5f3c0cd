-- What: the settings of a node that reads, failovers and pools depend on, and its schema's revision.
-- Columns: name, value; the revision goes by the name "revision", who is synchronous by
--   "synchronous" (a number of replicas, NULL where that may not be seen), whether the role may see
--   what timeline a replica receives by "sees_receiver".
SELECT name, setting || coalesce(unit, '')
FROM pg_settings
WHERE name IN ('max_connections', 'synchronous_commit', 'synchronous_standby_names',
               'hot_standby_feedback', 'max_standby_streaming_delay', 'wal_level',
               'max_wal_senders', 'server_encoding', 'TimeZone', 'default_transaction_read_only')
UNION ALL
SELECT 'synchronous', count(*) FILTER (WHERE sync_state IN ('sync', 'quorum'))::text
FROM pg_stat_replication
UNION ALL
SELECT 'sees_receiver', pg_has_role('pg_read_all_stats', 'USAGE')::text
