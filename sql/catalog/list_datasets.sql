-- What: all datasets with their rollups.
-- Columns: id, spec, rollups as JSON objects (id, step, relation, sysid, gone_before), before which
--   time blocks may hold points (NULL: there are none), and before which points may be gone.
SELECT d.id, d.spec, coalesce(
    jsonb_agg(jsonb_build_object(
        'id', r.id, 'step', r.step, 'relation', r.relation, 'sysid', r.sysid,
        'gone_before', r.gone_before
    )) FILTER (WHERE r.id IS NOT NULL), '[]'), d.cold_to, d.frozen_before
FROM {dataset} AS d
LEFT JOIN {rollup} AS r ON r.dataset_id = d.id
GROUP BY d.id, d.spec
ORDER BY d.id
