-- What: the replicas of this server, and how far each is behind.
-- Columns: name, bytes behind (null: the role may not see it, or this is a standby itself),
--   seconds behind (null: not known; 0 where nothing is left to replay).
SELECT coalesce(nullif(r.application_name, ''), 'pid ' || r.pid), l.bytes::float8,
       CASE WHEN l.bytes <= 0 THEN 0 ELSE extract(epoch FROM r.replay_lag) END::float8
FROM pg_stat_replication AS r
CROSS JOIN LATERAL (
    SELECT CASE WHEN NOT pg_is_in_recovery()
                THEN greatest(pg_current_wal_lsn() - r.replay_lsn, 0) END AS bytes
) AS l
WHERE r.state IS DISTINCT FROM 'backup'
ORDER BY 1
