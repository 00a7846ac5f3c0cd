-- What: how the statements of a slice are to be planned, until the transaction ends: with room to
--   sort in memory (never less than the server gives anyway), and by index: a young rollup has no
--   statistics, and would be sought through once a span.
SELECT set_config('work_mem',
                  greatest(pg_size_bytes(current_setting('work_mem')) / 1024, 65536) || 'kB', true),
       set_config('enable_seqscan', 'off', true)
