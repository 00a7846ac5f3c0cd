-- What: the role that we are. Columns: name.
SELECT current_user
