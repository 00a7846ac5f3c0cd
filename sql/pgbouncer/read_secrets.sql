-- What: the SCRAM secrets of roles; only a superuser may see them.
-- Params: roles.
-- Columns: role, secret.
SELECT rolname, rolpassword FROM pg_authid
WHERE rolname = ANY (%(roles)s::name[]) AND rolpassword LIKE 'SCRAM-SHA-256$%%'
