-- What: since when statements are counted, and how often one was forgotten for want of room.
-- Columns: since, forgotten.
SELECT i.stats_reset, i.dealloc FROM {schema}.pg_stat_statements_info AS i
