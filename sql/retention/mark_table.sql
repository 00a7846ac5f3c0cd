-- What: marks a partition as one that retention drops, for a run that has to finish it; NULL: no
--   more.
COMMENT ON TABLE {partition} IS {mark}
