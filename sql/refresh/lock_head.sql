-- What: the state of a pass over the newest changes; the level's own state is held already.
-- Params: rollup.
-- Columns: pass_to or NULL, pass_series, pass_lo, since.
SELECT pass_to::text, pass_series, pass_lo, since FROM {head} WHERE id = %(rollup)s FOR UPDATE
