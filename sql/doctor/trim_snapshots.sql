-- What: drops snapshots but the newest 24, and before them the first of each of the last 30 days.
DELETE FROM {snapshots}
WHERE taken_at < clock_timestamp() - interval '30 days'
   OR id NOT IN (SELECT id FROM {snapshots} ORDER BY taken_at DESC, id DESC LIMIT 24)
      AND id NOT IN (SELECT min(id) FROM {snapshots} GROUP BY date_trunc('day', taken_at, 'UTC'))
