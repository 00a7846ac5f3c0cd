-- What: room to sort and hash a bulk statement in memory, until the transaction ends; never less
--   than the server gives anyway.
SELECT set_config('work_mem', '64MB', true)
WHERE pg_size_bytes(current_setting('work_mem')) < pg_size_bytes('64MB')
