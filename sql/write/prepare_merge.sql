-- What: room to join a batch with what is there in memory, until the transaction ends; never less
--   than the server gives anyway.
SELECT set_config('work_mem',
                  greatest(pg_size_bytes(current_setting('work_mem')) / 1024, 131072) || 'kB', true)
