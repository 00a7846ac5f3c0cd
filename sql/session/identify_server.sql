-- What: the system identifier: it changes with a restore into a new cluster, and with it the
--   meaning of every transaction id.
-- Columns: identifier.
SELECT system_identifier FROM pg_control_system()
