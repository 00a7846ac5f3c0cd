-- What: remembers how far a pass has come, in the transaction that came so far.
-- Params: rollup, last_series, last_lo.
UPDATE {rollup} SET pass_series = %(last_series)s, pass_lo = %(last_lo)s WHERE id = %(rollup)s
