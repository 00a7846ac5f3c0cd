-- What: the schema of pgstatindex(), where the extension pgstattuple is there and the role may.
-- Columns: schema.
SELECT n.nspname
FROM pg_proc AS p
JOIN pg_namespace AS n ON n.oid = p.pronamespace
WHERE p.proname = 'pgstatindex' AND p.pronargs = 1 AND p.proargtypes[0] = 'regclass'::regtype
  AND has_function_privilege(p.oid, 'EXECUTE') AND has_schema_privilege(n.oid, 'USAGE')
