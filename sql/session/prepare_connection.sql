-- What: the session every statement here relies on: UTC, plans made for the values asked
--   (a generic plan locks every partition), and READ COMMITTED where nothing else is said.
-- Params: statement_timeout in milliseconds.
SELECT set_config('timezone', 'UTC', false),
       set_config('plan_cache_mode', 'force_custom_plan', false),
       set_config('jit', 'off', false),
       set_config('default_transaction_isolation', 'read committed', false),
       set_config('statement_timeout', %(statement_timeout)s, false)
