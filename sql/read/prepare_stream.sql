-- What: how a stream's statements are to be planned, until the transaction ends: in the order of the
--   index. Without statistics each piece would sort all that is left.
SELECT set_config('enable_sort', 'off', true)
