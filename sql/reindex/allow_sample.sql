-- What: lets this transaction make a table of its own, also where the session only looks.
SET TRANSACTION READ WRITE
