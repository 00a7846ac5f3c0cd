-- What: drops a table if it is still empty once nobody else can write to it.
-- Params: none.
DO $drop$
BEGIN
    LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE;
    IF EXISTS (SELECT FROM {table}) THEN
        RAISE EXCEPTION '% holds rows now', {text};
    END IF;
    DROP TABLE {table};
END
$drop$
