-- What: moves a rollup's cursor to where its pass was going.
-- Params: rollup.
UPDATE {rollup}
SET cursor = pass_to, pass_to = NULL, pass_series = NULL, pass_lo = NULL, refreshed_at = now()
WHERE id = %(rollup)s
