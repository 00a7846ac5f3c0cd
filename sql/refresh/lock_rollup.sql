-- What: the state of one rollup, locked: one refresher a level at a time.
-- Params: rollup.
-- Columns: pass_to or NULL, pass_series, pass_lo, sysid.
SELECT pass_to::text, pass_series, pass_lo, sysid
FROM {rollup}
WHERE id = %(rollup)s
FOR UPDATE
