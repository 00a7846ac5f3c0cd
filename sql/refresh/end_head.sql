-- What: notes that a rollup has followed the newest changes to where the pass was going.
-- Params: rollup.
UPDATE {head}
SET cursor = pass_to, pass_to = NULL, pass_series = NULL, pass_lo = NULL
WHERE id = %(rollup)s
