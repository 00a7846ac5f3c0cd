-- What: lets vacuums of this session rest as autovacuum does, and index builds take one core.
-- Columns: both settings; whether the server counts what is written.
SELECT set_config('vacuum_cost_delay', '2ms', false),
       set_config('max_parallel_maintenance_workers', '0', false),
       current_setting('track_counts')::boolean
