-- What: lets a column of the sample be left out.
ALTER TABLE pg_temp.toolkit_sample ALTER COLUMN {column} DROP NOT NULL
