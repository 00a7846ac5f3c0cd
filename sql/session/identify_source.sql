-- What: whose a dataset is: which database, schema and declaration, told apart from others of the
--   same names, here and on other servers.
-- Params: dataset, its name.
-- Columns: database, its oid, the oid of the schema's list of datasets, the dataset's id.
SELECT current_database(), (SELECT b.oid::bigint FROM pg_database AS b
                            WHERE b.datname = current_database()),
       d.tableoid::bigint, d.id
FROM {dataset} AS d WHERE d.name = %(dataset)s
