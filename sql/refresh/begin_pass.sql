-- What: sets where a refresh is going: to the finer rollup's cursor, or to now.
-- Params: rollup, finer (id of the finer rollup or NULL), sysid.
UPDATE {rollup} AS r
SET pass_to = coalesce((SELECT f.cursor FROM {rollup} AS f WHERE f.id = %(finer)s),
                       pg_current_snapshot()),
    pass_series = 0, pass_lo = 'epoch', sysid = %(sysid)s
WHERE r.id = %(rollup)s AND r.pass_to IS NULL
