-- What: the settings that advice is given for, as they are in a new session of ours.
-- Params: names.
-- Columns: name, value, unit, when a change takes effect (postmaster: by a restart), whether one waits
--   for that, the default.
SELECT s.name, s.setting, coalesce(s.unit, ''), s.context, s.pending_restart, s.boot_val
FROM pg_settings AS s
WHERE s.name = ANY (%(names)s)
