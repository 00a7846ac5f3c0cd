-- What: has the change log hear again of what the transaction does.
SELECT set_config('toolkit.moving', 'off', true)
