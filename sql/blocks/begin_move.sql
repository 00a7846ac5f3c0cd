-- What: says that points move between rows and blocks, until the transaction ends: the change log's
--   triggers let them pass; and gives up a lock that is not free in time.
-- Params: patience, in ms as text.
SELECT set_config('toolkit.moving', 'on', true), set_config('lock_timeout', %(patience)s, true)
