-- What: whether we speak with the server itself, and the session every statement here relies on:
--   UTC, times and texts as drivers and our statements write them, plans made for the values asked (a
--   generic plan locks every partition), and READ COMMITTED where nothing else is said. A pooler gives
--   pids of its own making: behind one only the time zone and the styles are set, which poolers carry
--   along, for the rest would stay behind for others to find.
-- Params: pid, which the connection was told; statement_timeout in milliseconds.
-- Columns: is_direct; plan_cache_mode, jit, default_transaction_isolation, statement_timeout as
--   they are now.
SELECT pg_backend_pid() = %(pid)s,
       CASE WHEN pg_backend_pid() = %(pid)s
            THEN set_config('plan_cache_mode', 'force_custom_plan', false)
            ELSE current_setting('plan_cache_mode') END,
       CASE WHEN pg_backend_pid() = %(pid)s
            THEN set_config('jit', 'off', false)
            ELSE current_setting('jit') END,
       CASE WHEN pg_backend_pid() = %(pid)s
            THEN set_config('default_transaction_isolation', 'read committed', false)
            ELSE current_setting('default_transaction_isolation') END,
       extract(epoch FROM
           CASE WHEN pg_backend_pid() = %(pid)s
                THEN set_config('statement_timeout', %(statement_timeout)s, false)
                ELSE current_setting('statement_timeout') END::interval)::float8,
       set_config('timezone', 'UTC', false) || set_config('datestyle', 'ISO', false)
       || set_config('intervalstyle', 'postgres', false)
       || set_config('standard_conforming_strings', 'on', false)
