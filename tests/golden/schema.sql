DO $schema$
BEGIN
    IF to_regnamespace('"toolkit"') IS NULL THEN
        CREATE SCHEMA "toolkit";
    END IF;
END
$schema$;

BEGIN;

CREATE TABLE toolkit.toolkit_version (
    version_num VARCHAR(32) NOT NULL, 
    CONSTRAINT toolkit_version_pkc PRIMARY KEY (version_num)
);

-- Running upgrade  -> 0001

CREATE TABLE "toolkit".dataset (
    id integer GENERATED ALWAYS AS IDENTITY CONSTRAINT dataset_pkey PRIMARY KEY,
    name text NOT NULL CONSTRAINT dataset_name_key UNIQUE,
    spec jsonb NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    prune_to pg_snapshot,
    prune_next pg_snapshot,
    prune_next_at timestamptz,
    pruned_to xid8
);
COMMENT ON TABLE "toolkit".dataset IS
    'families of series with the same columns; spec is the declaration';
COMMENT ON COLUMN "toolkit".dataset.prune_to IS
    'the change log may lose what this snapshot sees; prune_next follows it after a while';
COMMENT ON COLUMN "toolkit".dataset.pruned_to IS
    'the youngest transaction whose row the change log has lost';

CREATE TABLE "toolkit".series (
    id integer GENERATED ALWAYS AS IDENTITY CONSTRAINT series_pkey PRIMARY KEY,
    dataset_id integer NOT NULL
        CONSTRAINT series_dataset_id_fkey REFERENCES "toolkit".dataset (id),
    name text NOT NULL CONSTRAINT series_name_fits CHECK (length(name) BETWEEN 1 AND 500),
    labels jsonb NOT NULL DEFAULT '{}'
        CONSTRAINT series_labels_are_an_object CHECK (jsonb_typeof(labels) = 'object'),
    step interval,
    created_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT series_dataset_id_name_key UNIQUE (dataset_id, name)
);
COMMENT ON COLUMN "toolkit".series.step IS
    'distance between neighbouring points where it is regular, else NULL';
CREATE INDEX series_labels ON "toolkit".series USING gin (labels jsonb_path_ops);

CREATE TABLE "toolkit".rollup (
    id integer GENERATED ALWAYS AS IDENTITY CONSTRAINT rollup_pkey PRIMARY KEY,
    dataset_id integer NOT NULL
        CONSTRAINT rollup_dataset_id_fkey REFERENCES "toolkit".dataset (id),
    step text NOT NULL,
    relation text NOT NULL,
    width interval NOT NULL,
    cursor pg_snapshot NOT NULL DEFAULT '1:1:',
    sysid bigint,
    pass_to pg_snapshot,
    pass_series integer,
    pass_lo timestamptz,
    refreshed_at timestamptz,
    CONSTRAINT rollup_dataset_id_step_key UNIQUE (dataset_id, step)
);
COMMENT ON COLUMN "toolkit".rollup.cursor IS
    'what of the change log this rollup has followed: the rows visible in this snapshot';
COMMENT ON COLUMN "toolkit".rollup.pass_to IS
    'where an unfinished refresh is going; it goes on after (pass_series, pass_lo)';


CREATE FUNCTION "toolkit".add_partitions_v1(
    parent text, every text, wanted_from timestamptz, wanted_to timestamptz, log_function text
) RETURNS integer
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp SET timezone = 'UTC' SET lock_timeout = '5s' AS $add$
DECLARE
    n integer := substring(every FROM '^[0-9]+')::integer;
    unit text := right(every, 1);
    months integer := CASE unit WHEN 'M' THEN n WHEN 'y' THEN 12 * n ELSE 0 END;
    days integer := CASE unit WHEN 'd' THEN n WHEN 'w' THEN 7 * n ELSE 0 END;
    stride interval := make_interval(days => days);
    origin timestamptz := CASE unit WHEN 'w' THEN '1970-01-05' ELSE '1970-01-01' END;
    index integer;
    low timestamptz;
    high timestamptz;
    part text;
    made integer := 0;
    wanted integer;
    event text;
BEGIN
    IF wanted_from < '1900-01-01' OR wanted_to > '2100-01-01' OR NOT isfinite(wanted_from)
       OR NOT isfinite(wanted_to) OR wanted_from IS NULL OR wanted_to IS NULL THEN
        RAISE EXCEPTION 'partitions of % from % to %: outside 1900 to 2100',
            parent, wanted_from, wanted_to USING ERRCODE = 'datetime_field_overflow';
    END IF;
    IF months > 0 THEN
        index := floor(((extract(year FROM wanted_from) - 1970) * 12
                        + extract(month FROM wanted_from) - 1) / months) * months;
        low := origin + make_interval(months => index);
        wanted := extract(epoch FROM wanted_to - low) / 2629746 / months;
    ELSE
        low := date_bin(stride, wanted_from, origin);
        wanted := extract(epoch FROM wanted_to - low) / 86400 / days;
    END IF;
    IF wanted > 1500 THEN
        RAISE EXCEPTION 'more than 1500 partitions of % from % to %: is a timestamp wrong?',
            parent, wanted_from, wanted_to USING ERRCODE = 'program_limit_exceeded';
    END IF;
    WHILE low < wanted_to LOOP
        IF months > 0 THEN
            index := index + months;
            high := origin + make_interval(months => index);
        ELSE
            high := low + stride;
        END IF;
        part := parent || '_p' || to_char(low, 'YYYYMMDD');
        IF to_regclass(format('%I.%I', 'toolkit', part)) IS NULL THEN
            EXECUTE format(
                'LOCK TABLE %I.%I IN SHARE UPDATE EXCLUSIVE MODE', 'toolkit', parent);
            IF to_regclass(format('%I.%I', 'toolkit', part)) IS NULL THEN
                EXECUTE format(
                    'CREATE TABLE %1$I.%2$I (LIKE %1$I.%3$I INCLUDING DEFAULTS '
                    'INCLUDING CONSTRAINTS INCLUDING INDEXES INCLUDING STORAGE) '
                    'WITH (autovacuum_vacuum_insert_scale_factor = 0.02)',
                    'toolkit', part, parent);
                FOREACH event IN ARRAY CASE WHEN log_function IS NULL THEN '{}'::text[]
                                            ELSE '{INSERT,UPDATE,DELETE}' END LOOP
                    EXECUTE format(
                        'CREATE TRIGGER %I AFTER %s ON %I.%I REFERENCING %s '
                        'FOR EACH STATEMENT EXECUTE FUNCTION %I.%I()',
                        'log_' || lower(event), event, 'toolkit', part,
                        CASE event WHEN 'INSERT' THEN 'NEW TABLE AS new_rows'
                                   WHEN 'DELETE' THEN 'OLD TABLE AS old_rows'
                                   ELSE 'OLD TABLE AS old_rows NEW TABLE AS new_rows' END,
                        'toolkit', log_function);
                END LOOP;
                IF log_function IS NOT NULL THEN
                    EXECUTE format(
                        'CREATE TRIGGER log_truncate BEFORE TRUNCATE ON %I.%I '
                        'FOR EACH STATEMENT EXECUTE FUNCTION %I.%I()',
                        'toolkit', part, 'toolkit',
                        replace(log_function, '_changed_v', '_truncated_v'));
                END IF;
                EXECUTE format(
                    'ALTER TABLE %1$I.%2$I ATTACH PARTITION %1$I.%3$I '
                    'FOR VALUES FROM (%4$L) TO (%5$L)',
                    'toolkit', parent, part, low, high);
                made := made + 1;
            END IF;
        ELSIF NOT EXISTS (
            SELECT FROM pg_inherits
            WHERE inhrelid = to_regclass(format('%I.%I', 'toolkit', part))
              AND inhparent = to_regclass(format('%I.%I', 'toolkit', parent))
        ) THEN
            RAISE EXCEPTION 'table % exists but is no partition of %: attach it, or rename it',
                part, parent USING ERRCODE = 'object_not_in_prerequisite_state';
        END IF;
        low := high;
    END LOOP;
    RETURN made;
END
$add$;
REVOKE EXECUTE ON FUNCTION
    "toolkit".add_partitions_v1(text, text, timestamptz, timestamptz, text) FROM PUBLIC;


CREATE FUNCTION "toolkit".ensure_partitions(
    dataset text, wanted_from timestamptz, wanted_to timestamptz
) RETURNS integer
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp AS $ensure$
DECLARE
    declared jsonb;
BEGIN
    SELECT d.spec INTO declared FROM "toolkit".dataset AS d WHERE d.name = dataset;
    IF declared IS NULL THEN
        RAISE EXCEPTION 'no dataset %', quote_literal(dataset) USING ERRCODE = 'undefined_object';
    END IF;
    IF NOT has_table_privilege(
        coalesce(nullif(current_setting('role'), 'none'), session_user),
        format('%I.%I', 'toolkit', dataset), 'INSERT') THEN
        RAISE EXCEPTION 'adding partitions to % needs the right to INSERT there', dataset
            USING ERRCODE = 'insufficient_privilege';
    END IF;
    RETURN "toolkit".add_partitions_v1(
        dataset, declared ->> 'partition', wanted_from, wanted_to,
        CASE declared ->> 'changelog' WHEN 'trigger' THEN dataset || '_changed_v1' END);
END
$ensure$;
COMMENT ON FUNCTION "toolkit".ensure_partitions(text, timestamptz, timestamptz) IS
    'adds the partitions a dataset lacks in [from, to); returns how many';


CREATE FUNCTION "toolkit".run_if_changed_v1(
    statement text, series_id integer, ranges tstzmultirange, width interval, origin timestamptz,
    wanted_from timestamptz, wanted_to timestamptz
) RETURNS SETOF record
LANGUAGE plpgsql STABLE AS $run$
BEGIN
    IF NOT isempty(ranges) THEN
        RETURN QUERY EXECUTE statement
        USING series_id, ranges, width, origin,
              greatest(lower(ranges), wanted_from), least(upper(ranges), wanted_to);
    END IF;
END
$run$;
COMMENT ON FUNCTION "toolkit".run_if_changed_v1(
    text, integer, tstzmultirange, interval, timestamptz, timestamptz, timestamptz) IS
    'runs a statement over changed ranges where there are some: planned late, and for them only';


INSERT INTO toolkit.toolkit_version (version_num) VALUES ('0001') RETURNING toolkit.toolkit_version.version_num;

COMMIT;

BEGIN;

-- Running upgrade 0001 -> 0002

DO $check$
DECLARE
    maker oid := (SELECT proowner FROM pg_proc WHERE oid = to_regprocedure('"toolkit".add_partitions_v1(text, text, timestamptz, timestamptz, text)'));
BEGIN
    IF maker IS NULL THEN
        RAISE EXCEPTION 'schema % is not migrated; run: toolkit migrate up', 'toolkit';
    ELSIF NOT pg_has_role(maker, current_user, 'USAGE') THEN
        RAISE EXCEPTION 'a dataset must be created as role %, which owns the functions of '
            'schema %; SET ROLE to it before, RESET ROLE after', maker::regrole, 'toolkit';
    END IF;
END
$check$;


INSERT INTO "toolkit"."dataset" (name, spec)
VALUES ('candles', '{"name": "candles", "columns": [{"name": "open", "type": "float"}, {"name": "high", "type": "float"}, {"name": "low", "type": "float"}, {"name": "close", "type": "float"}, {"name": "volume", "type": "float"}], "aggregates": [{"name": "open", "kind": "first", "of": ["open"]}, {"name": "high", "kind": "max", "of": ["high"]}, {"name": "low", "kind": "min", "of": ["low"]}, {"name": "close", "kind": "last", "of": ["close"]}, {"name": "volume", "kind": "sum", "of": ["volume"]}, {"name": "vwap", "kind": "vwap", "of": ["high", "low", "close"], "by": "volume"}], "ladder": ["5m", "1h", "1d"], "partition": "1M", "has_seq": false, "chart": "close", "indexes": [], "changelog": "trigger", "compress_after": ""}'::jsonb);


CREATE TABLE "toolkit"."candles" (
    series_id integer NOT NULL,
    ts timestamptz NOT NULL CONSTRAINT ts_is_finite CHECK (isfinite(ts)),
    "open" double precision CONSTRAINT "open_is_not_nan" CHECK ("open" <> 'NaN'),
    "high" double precision CONSTRAINT "high_is_not_nan" CHECK ("high" <> 'NaN'),
    "low" double precision CONSTRAINT "low_is_not_nan" CHECK ("low" <> 'NaN'),
    "close" double precision CONSTRAINT "close_is_not_nan" CHECK ("close" <> 'NaN'),
    "volume" double precision CONSTRAINT "volume_is_not_nan" CHECK ("volume" <> 'NaN'),
    CONSTRAINT "candles_pkey" PRIMARY KEY ("series_id", "ts") INCLUDE ("open", "high", "low", "close", "volume")
) PARTITION BY RANGE (ts);


CREATE TABLE "toolkit"."candles_log" (
    series_id integer NOT NULL,
    lo timestamptz NOT NULL,
    hi timestamptz NOT NULL,
    xid xid8 NOT NULL DEFAULT pg_current_xact_id()
) WITH (autovacuum_vacuum_insert_scale_factor = 0.02);


CREATE INDEX "candles_log_series" ON "toolkit"."candles_log" (series_id, lo) INCLUDE (hi, xid);


CREATE INDEX "candles_log_xid" ON "toolkit"."candles_log" (xid);


CREATE FUNCTION "toolkit"."candles_changed_v1"() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $changed$
BEGIN
    -- points that move between rows and blocks change no answer
    IF current_setting('toolkit.moving', true) = 'on' THEN
        RETURN NULL;
    ELSIF TG_OP = 'INSERT' THEN
        INSERT INTO "toolkit"."candles_log" (series_id, lo, hi)
        SELECT series_id, min(b), max(b) + interval '300 seconds'
        FROM (SELECT series_id, b, date_bin(interval '7 days', b, timestamptz 'epoch') AS cell,
                     b - interval '300 seconds' * row_number() OVER (PARTITION BY series_id ORDER BY b) AS run
              FROM (SELECT DISTINCT series_id, date_bin(interval '300 seconds', ts, timestamptz 'epoch') AS b
                    FROM new_rows) AS touched) AS numbered
        GROUP BY series_id, cell, run;
    ELSIF TG_OP = 'DELETE' THEN
        INSERT INTO "toolkit"."candles_log" (series_id, lo, hi)
        SELECT series_id, min(b), max(b) + interval '300 seconds'
        FROM (SELECT series_id, b, date_bin(interval '7 days', b, timestamptz 'epoch') AS cell,
                     b - interval '300 seconds' * row_number() OVER (PARTITION BY series_id ORDER BY b) AS run
              FROM (SELECT DISTINCT series_id, date_bin(interval '300 seconds', ts, timestamptz 'epoch') AS b
                    FROM old_rows) AS touched) AS numbered
        GROUP BY series_id, cell, run;
    ELSE
        INSERT INTO "toolkit"."candles_log" (series_id, lo, hi)
        SELECT series_id, min(b), max(b) + interval '300 seconds'
        FROM (SELECT series_id, b, date_bin(interval '7 days', b, timestamptz 'epoch') AS cell,
                     b - interval '300 seconds' * row_number() OVER (PARTITION BY series_id ORDER BY b) AS run
              FROM (SELECT DISTINCT series_id, date_bin(interval '300 seconds', ts, timestamptz 'epoch') AS b
                    FROM (SELECT series_id, ts FROM old_rows UNION ALL SELECT series_id, ts FROM new_rows) AS u) AS touched) AS numbered
        GROUP BY series_id, cell, run;
    END IF;
    RETURN NULL;
END
$changed$;


CREATE FUNCTION "toolkit"."candles_truncated_v1"() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $truncated$
BEGIN
    -- it removes rows that an older snapshot does not see, and what is not seen is not logged
    IF current_setting('transaction_isolation') NOT IN ('read committed', 'read uncommitted') THEN
        RAISE EXCEPTION 'TRUNCATE of % needs a READ COMMITTED transaction', TG_TABLE_NAME
            USING ERRCODE = 'invalid_transaction_state';
    END IF;
    EXECUTE format($log$
        INSERT INTO "toolkit"."candles_log" (series_id, lo, hi)
        SELECT series_id, min(b), max(b) + interval '300 seconds'
        FROM (SELECT series_id, b, date_bin(interval '7 days', b, timestamptz 'epoch') AS cell,
                     b - interval '300 seconds' * row_number() OVER (PARTITION BY series_id ORDER BY b) AS run
              FROM (SELECT DISTINCT series_id, date_bin(interval '300 seconds', ts, timestamptz 'epoch') AS b
                    FROM %I.%I) AS touched) AS numbered
        GROUP BY series_id, cell, run
    $log$, TG_TABLE_SCHEMA, TG_TABLE_NAME);
    RETURN NULL;
END
$truncated$;


REVOKE EXECUTE ON FUNCTION "toolkit"."candles_changed_v1"() FROM PUBLIC;


REVOKE EXECUTE ON FUNCTION "toolkit"."candles_truncated_v1"() FROM PUBLIC;


CREATE TRIGGER "log_insert" AFTER INSERT ON "toolkit"."candles"
REFERENCING NEW TABLE AS new_rows FOR EACH STATEMENT
EXECUTE FUNCTION "toolkit"."candles_changed_v1"();


CREATE TRIGGER "log_update" AFTER UPDATE ON "toolkit"."candles"
REFERENCING OLD TABLE AS old_rows NEW TABLE AS new_rows FOR EACH STATEMENT
EXECUTE FUNCTION "toolkit"."candles_changed_v1"();


CREATE TRIGGER "log_delete" AFTER DELETE ON "toolkit"."candles"
REFERENCING OLD TABLE AS old_rows FOR EACH STATEMENT
EXECUTE FUNCTION "toolkit"."candles_changed_v1"();


CREATE TABLE "toolkit"."candles_5m" (
    series_id integer NOT NULL,
    ts timestamptz NOT NULL,
    "open_first" double precision,
    "open_first_ts" timestamptz,
    "high_max" double precision,
    "low_min" double precision,
    "close_last" double precision,
    "close_last_ts" timestamptz,
    "volume_sum" double precision,
    "vwap_pv" double precision,
    "vwap_v" double precision,
    CONSTRAINT "candles_5m_pkey" PRIMARY KEY (series_id, ts) INCLUDE ("open_first", "open_first_ts", "high_max", "low_min", "close_last", "close_last_ts", "volume_sum", "vwap_pv", "vwap_v")
) PARTITION BY RANGE (ts);


INSERT INTO "toolkit"."rollup" (dataset_id, step, relation, width)
SELECT id, '5m', 'candles_5m', interval '300 seconds'
FROM "toolkit"."dataset" WHERE name = 'candles';


CREATE TABLE "toolkit"."candles_1h" (
    series_id integer NOT NULL,
    ts timestamptz NOT NULL,
    "open_first" double precision,
    "open_first_ts" timestamptz,
    "high_max" double precision,
    "low_min" double precision,
    "close_last" double precision,
    "close_last_ts" timestamptz,
    "volume_sum" double precision,
    "vwap_pv" double precision,
    "vwap_v" double precision,
    CONSTRAINT "candles_1h_pkey" PRIMARY KEY (series_id, ts) INCLUDE ("open_first", "open_first_ts", "high_max", "low_min", "close_last", "close_last_ts", "volume_sum", "vwap_pv", "vwap_v")
) PARTITION BY RANGE (ts);


INSERT INTO "toolkit"."rollup" (dataset_id, step, relation, width)
SELECT id, '1h', 'candles_1h', interval '3600 seconds'
FROM "toolkit"."dataset" WHERE name = 'candles';


CREATE TABLE "toolkit"."candles_1d" (
    series_id integer NOT NULL,
    ts timestamptz NOT NULL,
    "open_first" double precision,
    "open_first_ts" timestamptz,
    "high_max" double precision,
    "low_min" double precision,
    "close_last" double precision,
    "close_last_ts" timestamptz,
    "volume_sum" double precision,
    "vwap_pv" double precision,
    "vwap_v" double precision,
    CONSTRAINT "candles_1d_pkey" PRIMARY KEY (series_id, ts) INCLUDE ("open_first", "open_first_ts", "high_max", "low_min", "close_last", "close_last_ts", "volume_sum", "vwap_pv", "vwap_v")
) PARTITION BY RANGE (ts);


INSERT INTO "toolkit"."rollup" (dataset_id, step, relation, width)
SELECT id, '1d', 'candles_1d', interval '86400 seconds'
FROM "toolkit"."dataset" WHERE name = 'candles';


DO $check$
DECLARE
    maker oid := (SELECT proowner FROM pg_proc WHERE oid = to_regprocedure('"toolkit".add_partitions_v1(text, text, timestamptz, timestamptz, text)'));
BEGIN
    IF maker IS NULL THEN
        RAISE EXCEPTION 'schema % is not migrated; run: toolkit migrate up', 'toolkit';
    ELSIF NOT pg_has_role(maker, current_user, 'USAGE') THEN
        RAISE EXCEPTION 'a dataset must be created as role %, which owns the functions of '
            'schema %; SET ROLE to it before, RESET ROLE after', maker::regrole, 'toolkit';
    END IF;
END
$check$;


INSERT INTO "toolkit"."dataset" (name, spec)
VALUES ('trades', '{"name": "trades", "columns": [{"name": "price", "type": "float"}, {"name": "size", "type": "float"}, {"name": "side", "type": "category"}], "aggregates": [{"name": "open", "kind": "first", "of": ["price"]}, {"name": "high", "kind": "max", "of": ["price"]}, {"name": "low", "kind": "min", "of": ["price"]}, {"name": "close", "kind": "last", "of": ["price"]}, {"name": "volume", "kind": "sum", "of": ["size"]}, {"name": "vwap", "kind": "vwap", "of": ["price"], "by": "size"}], "ladder": ["1m", "5m", "1h", "1d"], "partition": "1w", "has_seq": true, "chart": "price", "indexes": [], "changelog": "trigger", "compress_after": ""}'::jsonb);


CREATE TABLE "toolkit"."trades" (
    series_id integer NOT NULL,
    ts timestamptz NOT NULL CONSTRAINT ts_is_finite CHECK (isfinite(ts)),
    seq bigint NOT NULL DEFAULT 0,
    "price" double precision CONSTRAINT "price_is_not_nan" CHECK ("price" <> 'NaN'),
    "size" double precision CONSTRAINT "size_is_not_nan" CHECK ("size" <> 'NaN'),
    "side" text CONSTRAINT "side_fits" CHECK (length("side") <= 500),
    CONSTRAINT "trades_pkey" PRIMARY KEY ("series_id", "ts", "seq") INCLUDE ("price", "size", "side")
) PARTITION BY RANGE (ts);


CREATE TABLE "toolkit"."trades_log" (
    series_id integer NOT NULL,
    lo timestamptz NOT NULL,
    hi timestamptz NOT NULL,
    xid xid8 NOT NULL DEFAULT pg_current_xact_id()
) WITH (autovacuum_vacuum_insert_scale_factor = 0.02);


CREATE INDEX "trades_log_series" ON "toolkit"."trades_log" (series_id, lo) INCLUDE (hi, xid);


CREATE INDEX "trades_log_xid" ON "toolkit"."trades_log" (xid);


CREATE FUNCTION "toolkit"."trades_changed_v1"() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $changed$
BEGIN
    -- points that move between rows and blocks change no answer
    IF current_setting('toolkit.moving', true) = 'on' THEN
        RETURN NULL;
    ELSIF TG_OP = 'INSERT' THEN
        INSERT INTO "toolkit"."trades_log" (series_id, lo, hi)
        SELECT series_id, min(b), max(b) + interval '60 seconds'
        FROM (SELECT series_id, b, date_bin(interval '7 days', b, timestamptz 'epoch') AS cell,
                     b - interval '60 seconds' * row_number() OVER (PARTITION BY series_id ORDER BY b) AS run
              FROM (SELECT DISTINCT series_id, date_bin(interval '60 seconds', ts, timestamptz 'epoch') AS b
                    FROM new_rows) AS touched) AS numbered
        GROUP BY series_id, cell, run;
    ELSIF TG_OP = 'DELETE' THEN
        INSERT INTO "toolkit"."trades_log" (series_id, lo, hi)
        SELECT series_id, min(b), max(b) + interval '60 seconds'
        FROM (SELECT series_id, b, date_bin(interval '7 days', b, timestamptz 'epoch') AS cell,
                     b - interval '60 seconds' * row_number() OVER (PARTITION BY series_id ORDER BY b) AS run
              FROM (SELECT DISTINCT series_id, date_bin(interval '60 seconds', ts, timestamptz 'epoch') AS b
                    FROM old_rows) AS touched) AS numbered
        GROUP BY series_id, cell, run;
    ELSE
        INSERT INTO "toolkit"."trades_log" (series_id, lo, hi)
        SELECT series_id, min(b), max(b) + interval '60 seconds'
        FROM (SELECT series_id, b, date_bin(interval '7 days', b, timestamptz 'epoch') AS cell,
                     b - interval '60 seconds' * row_number() OVER (PARTITION BY series_id ORDER BY b) AS run
              FROM (SELECT DISTINCT series_id, date_bin(interval '60 seconds', ts, timestamptz 'epoch') AS b
                    FROM (SELECT series_id, ts FROM old_rows UNION ALL SELECT series_id, ts FROM new_rows) AS u) AS touched) AS numbered
        GROUP BY series_id, cell, run;
    END IF;
    RETURN NULL;
END
$changed$;


CREATE FUNCTION "toolkit"."trades_truncated_v1"() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $truncated$
BEGIN
    -- it removes rows that an older snapshot does not see, and what is not seen is not logged
    IF current_setting('transaction_isolation') NOT IN ('read committed', 'read uncommitted') THEN
        RAISE EXCEPTION 'TRUNCATE of % needs a READ COMMITTED transaction', TG_TABLE_NAME
            USING ERRCODE = 'invalid_transaction_state';
    END IF;
    EXECUTE format($log$
        INSERT INTO "toolkit"."trades_log" (series_id, lo, hi)
        SELECT series_id, min(b), max(b) + interval '60 seconds'
        FROM (SELECT series_id, b, date_bin(interval '7 days', b, timestamptz 'epoch') AS cell,
                     b - interval '60 seconds' * row_number() OVER (PARTITION BY series_id ORDER BY b) AS run
              FROM (SELECT DISTINCT series_id, date_bin(interval '60 seconds', ts, timestamptz 'epoch') AS b
                    FROM %I.%I) AS touched) AS numbered
        GROUP BY series_id, cell, run
    $log$, TG_TABLE_SCHEMA, TG_TABLE_NAME);
    RETURN NULL;
END
$truncated$;


REVOKE EXECUTE ON FUNCTION "toolkit"."trades_changed_v1"() FROM PUBLIC;


REVOKE EXECUTE ON FUNCTION "toolkit"."trades_truncated_v1"() FROM PUBLIC;


CREATE TRIGGER "log_insert" AFTER INSERT ON "toolkit"."trades"
REFERENCING NEW TABLE AS new_rows FOR EACH STATEMENT
EXECUTE FUNCTION "toolkit"."trades_changed_v1"();


CREATE TRIGGER "log_update" AFTER UPDATE ON "toolkit"."trades"
REFERENCING OLD TABLE AS old_rows NEW TABLE AS new_rows FOR EACH STATEMENT
EXECUTE FUNCTION "toolkit"."trades_changed_v1"();


CREATE TRIGGER "log_delete" AFTER DELETE ON "toolkit"."trades"
REFERENCING OLD TABLE AS old_rows FOR EACH STATEMENT
EXECUTE FUNCTION "toolkit"."trades_changed_v1"();


CREATE TABLE "toolkit"."trades_1m" (
    series_id integer NOT NULL,
    ts timestamptz NOT NULL,
    "price_first" double precision,
    "price_first_ts" timestamptz,
    "price_max" double precision,
    "price_min" double precision,
    "price_last" double precision,
    "price_last_ts" timestamptz,
    "size_sum" double precision,
    "vwap_pv" double precision,
    "vwap_v" double precision,
    CONSTRAINT "trades_1m_pkey" PRIMARY KEY (series_id, ts) INCLUDE ("price_first", "price_first_ts", "price_max", "price_min", "price_last", "price_last_ts", "size_sum", "vwap_pv", "vwap_v")
) PARTITION BY RANGE (ts);


INSERT INTO "toolkit"."rollup" (dataset_id, step, relation, width)
SELECT id, '1m', 'trades_1m', interval '60 seconds'
FROM "toolkit"."dataset" WHERE name = 'trades';


CREATE TABLE "toolkit"."trades_5m" (
    series_id integer NOT NULL,
    ts timestamptz NOT NULL,
    "price_first" double precision,
    "price_first_ts" timestamptz,
    "price_max" double precision,
    "price_min" double precision,
    "price_last" double precision,
    "price_last_ts" timestamptz,
    "size_sum" double precision,
    "vwap_pv" double precision,
    "vwap_v" double precision,
    CONSTRAINT "trades_5m_pkey" PRIMARY KEY (series_id, ts) INCLUDE ("price_first", "price_first_ts", "price_max", "price_min", "price_last", "price_last_ts", "size_sum", "vwap_pv", "vwap_v")
) PARTITION BY RANGE (ts);


INSERT INTO "toolkit"."rollup" (dataset_id, step, relation, width)
SELECT id, '5m', 'trades_5m', interval '300 seconds'
FROM "toolkit"."dataset" WHERE name = 'trades';


CREATE TABLE "toolkit"."trades_1h" (
    series_id integer NOT NULL,
    ts timestamptz NOT NULL,
    "price_first" double precision,
    "price_first_ts" timestamptz,
    "price_max" double precision,
    "price_min" double precision,
    "price_last" double precision,
    "price_last_ts" timestamptz,
    "size_sum" double precision,
    "vwap_pv" double precision,
    "vwap_v" double precision,
    CONSTRAINT "trades_1h_pkey" PRIMARY KEY (series_id, ts) INCLUDE ("price_first", "price_first_ts", "price_max", "price_min", "price_last", "price_last_ts", "size_sum", "vwap_pv", "vwap_v")
) PARTITION BY RANGE (ts);


INSERT INTO "toolkit"."rollup" (dataset_id, step, relation, width)
SELECT id, '1h', 'trades_1h', interval '3600 seconds'
FROM "toolkit"."dataset" WHERE name = 'trades';


CREATE TABLE "toolkit"."trades_1d" (
    series_id integer NOT NULL,
    ts timestamptz NOT NULL,
    "price_first" double precision,
    "price_first_ts" timestamptz,
    "price_max" double precision,
    "price_min" double precision,
    "price_last" double precision,
    "price_last_ts" timestamptz,
    "size_sum" double precision,
    "vwap_pv" double precision,
    "vwap_v" double precision,
    CONSTRAINT "trades_1d_pkey" PRIMARY KEY (series_id, ts) INCLUDE ("price_first", "price_first_ts", "price_max", "price_min", "price_last", "price_last_ts", "size_sum", "vwap_pv", "vwap_v")
) PARTITION BY RANGE (ts);


INSERT INTO "toolkit"."rollup" (dataset_id, step, relation, width)
SELECT id, '1d', 'trades_1d', interval '86400 seconds'
FROM "toolkit"."dataset" WHERE name = 'trades';


DO $check$
DECLARE
    maker oid := (SELECT proowner FROM pg_proc WHERE oid = to_regprocedure('"toolkit".add_partitions_v1(text, text, timestamptz, timestamptz, text)'));
BEGIN
    IF maker IS NULL THEN
        RAISE EXCEPTION 'schema % is not migrated; run: toolkit migrate up', 'toolkit';
    ELSIF NOT pg_has_role(maker, current_user, 'USAGE') THEN
        RAISE EXCEPTION 'a dataset must be created as role %, which owns the functions of '
            'schema %; SET ROLE to it before, RESET ROLE after', maker::regrole, 'toolkit';
    END IF;
END
$check$;


INSERT INTO "toolkit"."dataset" (name, spec)
VALUES ('metrics', '{"name": "metrics", "columns": [{"name": "value", "type": "float"}], "aggregates": [{"name": "value", "kind": "avg", "of": ["value"]}, {"name": "value_min", "kind": "min", "of": ["value"]}, {"name": "value_max", "kind": "max", "of": ["value"]}, {"name": "value_sum", "kind": "sum", "of": ["value"]}, {"name": "value_count", "kind": "count", "of": ["value"]}, {"name": "value_first", "kind": "first", "of": ["value"]}, {"name": "value_last", "kind": "last", "of": ["value"]}], "ladder": ["5m", "1h", "1d"], "partition": "1w", "has_seq": false, "chart": "value", "indexes": [], "changelog": "trigger", "compress_after": ""}'::jsonb);


CREATE TABLE "toolkit"."metrics" (
    series_id integer NOT NULL,
    ts timestamptz NOT NULL CONSTRAINT ts_is_finite CHECK (isfinite(ts)),
    "value" double precision CONSTRAINT "value_is_not_nan" CHECK ("value" <> 'NaN'),
    CONSTRAINT "metrics_pkey" PRIMARY KEY ("series_id", "ts") INCLUDE ("value")
) PARTITION BY RANGE (ts);


CREATE TABLE "toolkit"."metrics_log" (
    series_id integer NOT NULL,
    lo timestamptz NOT NULL,
    hi timestamptz NOT NULL,
    xid xid8 NOT NULL DEFAULT pg_current_xact_id()
) WITH (autovacuum_vacuum_insert_scale_factor = 0.02);


CREATE INDEX "metrics_log_series" ON "toolkit"."metrics_log" (series_id, lo) INCLUDE (hi, xid);


CREATE INDEX "metrics_log_xid" ON "toolkit"."metrics_log" (xid);


CREATE FUNCTION "toolkit"."metrics_changed_v1"() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $changed$
BEGIN
    -- points that move between rows and blocks change no answer
    IF current_setting('toolkit.moving', true) = 'on' THEN
        RETURN NULL;
    ELSIF TG_OP = 'INSERT' THEN
        INSERT INTO "toolkit"."metrics_log" (series_id, lo, hi)
        SELECT series_id, min(b), max(b) + interval '300 seconds'
        FROM (SELECT series_id, b, date_bin(interval '7 days', b, timestamptz 'epoch') AS cell,
                     b - interval '300 seconds' * row_number() OVER (PARTITION BY series_id ORDER BY b) AS run
              FROM (SELECT DISTINCT series_id, date_bin(interval '300 seconds', ts, timestamptz 'epoch') AS b
                    FROM new_rows) AS touched) AS numbered
        GROUP BY series_id, cell, run;
    ELSIF TG_OP = 'DELETE' THEN
        INSERT INTO "toolkit"."metrics_log" (series_id, lo, hi)
        SELECT series_id, min(b), max(b) + interval '300 seconds'
        FROM (SELECT series_id, b, date_bin(interval '7 days', b, timestamptz 'epoch') AS cell,
                     b - interval '300 seconds' * row_number() OVER (PARTITION BY series_id ORDER BY b) AS run
              FROM (SELECT DISTINCT series_id, date_bin(interval '300 seconds', ts, timestamptz 'epoch') AS b
                    FROM old_rows) AS touched) AS numbered
        GROUP BY series_id, cell, run;
    ELSE
        INSERT INTO "toolkit"."metrics_log" (series_id, lo, hi)
        SELECT series_id, min(b), max(b) + interval '300 seconds'
        FROM (SELECT series_id, b, date_bin(interval '7 days', b, timestamptz 'epoch') AS cell,
                     b - interval '300 seconds' * row_number() OVER (PARTITION BY series_id ORDER BY b) AS run
              FROM (SELECT DISTINCT series_id, date_bin(interval '300 seconds', ts, timestamptz 'epoch') AS b
                    FROM (SELECT series_id, ts FROM old_rows UNION ALL SELECT series_id, ts FROM new_rows) AS u) AS touched) AS numbered
        GROUP BY series_id, cell, run;
    END IF;
    RETURN NULL;
END
$changed$;


CREATE FUNCTION "toolkit"."metrics_truncated_v1"() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $truncated$
BEGIN
    -- it removes rows that an older snapshot does not see, and what is not seen is not logged
    IF current_setting('transaction_isolation') NOT IN ('read committed', 'read uncommitted') THEN
        RAISE EXCEPTION 'TRUNCATE of % needs a READ COMMITTED transaction', TG_TABLE_NAME
            USING ERRCODE = 'invalid_transaction_state';
    END IF;
    EXECUTE format($log$
        INSERT INTO "toolkit"."metrics_log" (series_id, lo, hi)
        SELECT series_id, min(b), max(b) + interval '300 seconds'
        FROM (SELECT series_id, b, date_bin(interval '7 days', b, timestamptz 'epoch') AS cell,
                     b - interval '300 seconds' * row_number() OVER (PARTITION BY series_id ORDER BY b) AS run
              FROM (SELECT DISTINCT series_id, date_bin(interval '300 seconds', ts, timestamptz 'epoch') AS b
                    FROM %I.%I) AS touched) AS numbered
        GROUP BY series_id, cell, run
    $log$, TG_TABLE_SCHEMA, TG_TABLE_NAME);
    RETURN NULL;
END
$truncated$;


REVOKE EXECUTE ON FUNCTION "toolkit"."metrics_changed_v1"() FROM PUBLIC;


REVOKE EXECUTE ON FUNCTION "toolkit"."metrics_truncated_v1"() FROM PUBLIC;


CREATE TRIGGER "log_insert" AFTER INSERT ON "toolkit"."metrics"
REFERENCING NEW TABLE AS new_rows FOR EACH STATEMENT
EXECUTE FUNCTION "toolkit"."metrics_changed_v1"();


CREATE TRIGGER "log_update" AFTER UPDATE ON "toolkit"."metrics"
REFERENCING OLD TABLE AS old_rows NEW TABLE AS new_rows FOR EACH STATEMENT
EXECUTE FUNCTION "toolkit"."metrics_changed_v1"();


CREATE TRIGGER "log_delete" AFTER DELETE ON "toolkit"."metrics"
REFERENCING OLD TABLE AS old_rows FOR EACH STATEMENT
EXECUTE FUNCTION "toolkit"."metrics_changed_v1"();


CREATE TABLE "toolkit"."metrics_5m" (
    series_id integer NOT NULL,
    ts timestamptz NOT NULL,
    "value_sum" double precision,
    "value_count" bigint,
    "value_min" double precision,
    "value_max" double precision,
    "value_first" double precision,
    "value_first_ts" timestamptz,
    "value_last" double precision,
    "value_last_ts" timestamptz,
    CONSTRAINT "metrics_5m_pkey" PRIMARY KEY (series_id, ts) INCLUDE ("value_sum", "value_count", "value_min", "value_max", "value_first", "value_first_ts", "value_last", "value_last_ts")
) PARTITION BY RANGE (ts);


INSERT INTO "toolkit"."rollup" (dataset_id, step, relation, width)
SELECT id, '5m', 'metrics_5m', interval '300 seconds'
FROM "toolkit"."dataset" WHERE name = 'metrics';


CREATE TABLE "toolkit"."metrics_1h" (
    series_id integer NOT NULL,
    ts timestamptz NOT NULL,
    "value_sum" double precision,
    "value_count" bigint,
    "value_min" double precision,
    "value_max" double precision,
    "value_first" double precision,
    "value_first_ts" timestamptz,
    "value_last" double precision,
    "value_last_ts" timestamptz,
    CONSTRAINT "metrics_1h_pkey" PRIMARY KEY (series_id, ts) INCLUDE ("value_sum", "value_count", "value_min", "value_max", "value_first", "value_first_ts", "value_last", "value_last_ts")
) PARTITION BY RANGE (ts);


INSERT INTO "toolkit"."rollup" (dataset_id, step, relation, width)
SELECT id, '1h', 'metrics_1h', interval '3600 seconds'
FROM "toolkit"."dataset" WHERE name = 'metrics';


CREATE TABLE "toolkit"."metrics_1d" (
    series_id integer NOT NULL,
    ts timestamptz NOT NULL,
    "value_sum" double precision,
    "value_count" bigint,
    "value_min" double precision,
    "value_max" double precision,
    "value_first" double precision,
    "value_first_ts" timestamptz,
    "value_last" double precision,
    "value_last_ts" timestamptz,
    CONSTRAINT "metrics_1d_pkey" PRIMARY KEY (series_id, ts) INCLUDE ("value_sum", "value_count", "value_min", "value_max", "value_first", "value_first_ts", "value_last", "value_last_ts")
) PARTITION BY RANGE (ts);


INSERT INTO "toolkit"."rollup" (dataset_id, step, relation, width)
SELECT id, '1d', 'metrics_1d', interval '86400 seconds'
FROM "toolkit"."dataset" WHERE name = 'metrics';


UPDATE toolkit.toolkit_version SET version_num='0002' WHERE toolkit.toolkit_version.version_num = '0001';

COMMIT;

BEGIN;

-- Running upgrade 0002 -> 0003

ALTER TABLE "toolkit".dataset ADD COLUMN cold_to timestamptz;
COMMENT ON COLUMN "toolkit".dataset.cold_to IS
    'blocks hold points before this time only; NULL where there are none';


CREATE OR REPLACE FUNCTION "toolkit".ensure_partitions(
    dataset text, wanted_from timestamptz, wanted_to timestamptz
) RETURNS integer
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp AS $ensure$
DECLARE
    declared jsonb;
BEGIN
    SELECT d.spec INTO declared FROM "toolkit".dataset AS d WHERE d.name = 
        regexp_replace(dataset, '_blocks$', '');
    IF declared IS NULL THEN
        RAISE EXCEPTION 'no dataset %', quote_literal(dataset) USING ERRCODE = 'undefined_object';
    END IF;
    IF NOT has_table_privilege(
        coalesce(nullif(current_setting('role'), 'none'), session_user),
        format('%I.%I', 'toolkit', dataset), 'INSERT') THEN
        RAISE EXCEPTION 'adding partitions to % needs the right to INSERT there', dataset
            USING ERRCODE = 'insufficient_privilege';
    END IF;
    RETURN "toolkit".add_partitions_v1(
        dataset, declared ->> 'partition', wanted_from, wanted_to,
        CASE WHEN declared ->> 'changelog' = 'trigger' AND dataset !~ '_blocks$'
             THEN dataset || '_changed_v1' END);
END
$ensure$;
COMMENT ON FUNCTION "toolkit".ensure_partitions(text, timestamptz, timestamptz) IS
    'adds the partitions a dataset, or its table of blocks, lacks in [from, to); returns how many';


CREATE TABLE IF NOT EXISTS "toolkit"."candles_blocks" (
    series_id integer NOT NULL,
    lo timestamptz NOT NULL,
    hi timestamptz NOT NULL,
    _rows integer NOT NULL,
    _first timestamptz NOT NULL,
    _last timestamptz NOT NULL,
    _header bytea NOT NULL,
    "ts" bytea NOT NULL,
    "open" bytea NOT NULL,
    "high" bytea NOT NULL,
    "low" bytea NOT NULL,
    "close" bytea NOT NULL,
    "volume" bytea NOT NULL,
    CONSTRAINT "candles_blocks_pkey" PRIMARY KEY (series_id, lo),
    CONSTRAINT span_holds_points CHECK (lo <= _first AND _first <= _last AND _last < hi)
) PARTITION BY RANGE (lo);


ALTER TABLE "toolkit"."candles_blocks" ALTER "_header" SET STORAGE EXTERNAL, ALTER "ts" SET STORAGE EXTERNAL, ALTER "open" SET STORAGE EXTERNAL, ALTER "high" SET STORAGE EXTERNAL, ALTER "low" SET STORAGE EXTERNAL, ALTER "close" SET STORAGE EXTERNAL, ALTER "volume" SET STORAGE EXTERNAL;


CREATE OR REPLACE FUNCTION "toolkit"."candles_changed_v1"() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $changed$
BEGIN
    -- points that move between rows and blocks change no answer
    IF current_setting('toolkit.moving', true) = 'on' THEN
        RETURN NULL;
    ELSIF TG_OP = 'INSERT' THEN
        INSERT INTO "toolkit"."candles_log" (series_id, lo, hi)
        SELECT series_id, min(b), max(b) + interval '300 seconds'
        FROM (SELECT series_id, b, date_bin(interval '7 days', b, timestamptz 'epoch') AS cell,
                     b - interval '300 seconds' * row_number() OVER (PARTITION BY series_id ORDER BY b) AS run
              FROM (SELECT DISTINCT series_id, date_bin(interval '300 seconds', ts, timestamptz 'epoch') AS b
                    FROM new_rows) AS touched) AS numbered
        GROUP BY series_id, cell, run;
    ELSIF TG_OP = 'DELETE' THEN
        INSERT INTO "toolkit"."candles_log" (series_id, lo, hi)
        SELECT series_id, min(b), max(b) + interval '300 seconds'
        FROM (SELECT series_id, b, date_bin(interval '7 days', b, timestamptz 'epoch') AS cell,
                     b - interval '300 seconds' * row_number() OVER (PARTITION BY series_id ORDER BY b) AS run
              FROM (SELECT DISTINCT series_id, date_bin(interval '300 seconds', ts, timestamptz 'epoch') AS b
                    FROM old_rows) AS touched) AS numbered
        GROUP BY series_id, cell, run;
    ELSE
        INSERT INTO "toolkit"."candles_log" (series_id, lo, hi)
        SELECT series_id, min(b), max(b) + interval '300 seconds'
        FROM (SELECT series_id, b, date_bin(interval '7 days', b, timestamptz 'epoch') AS cell,
                     b - interval '300 seconds' * row_number() OVER (PARTITION BY series_id ORDER BY b) AS run
              FROM (SELECT DISTINCT series_id, date_bin(interval '300 seconds', ts, timestamptz 'epoch') AS b
                    FROM (SELECT series_id, ts FROM old_rows UNION ALL SELECT series_id, ts FROM new_rows) AS u) AS touched) AS numbered
        GROUP BY series_id, cell, run;
    END IF;
    RETURN NULL;
END
$changed$;


CREATE TABLE IF NOT EXISTS "toolkit"."trades_blocks" (
    series_id integer NOT NULL,
    lo timestamptz NOT NULL,
    hi timestamptz NOT NULL,
    _rows integer NOT NULL,
    _first timestamptz NOT NULL,
    _last timestamptz NOT NULL,
    _header bytea NOT NULL,
    "ts" bytea NOT NULL,
    "seq" bytea NOT NULL,
    "price" bytea NOT NULL,
    "size" bytea NOT NULL,
    "side" bytea NOT NULL,
    CONSTRAINT "trades_blocks_pkey" PRIMARY KEY (series_id, lo),
    CONSTRAINT span_holds_points CHECK (lo <= _first AND _first <= _last AND _last < hi)
) PARTITION BY RANGE (lo);


ALTER TABLE "toolkit"."trades_blocks" ALTER "_header" SET STORAGE EXTERNAL, ALTER "ts" SET STORAGE EXTERNAL, ALTER "seq" SET STORAGE EXTERNAL, ALTER "price" SET STORAGE EXTERNAL, ALTER "size" SET STORAGE EXTERNAL, ALTER "side" SET STORAGE EXTERNAL;


CREATE OR REPLACE FUNCTION "toolkit"."trades_changed_v1"() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $changed$
BEGIN
    -- points that move between rows and blocks change no answer
    IF current_setting('toolkit.moving', true) = 'on' THEN
        RETURN NULL;
    ELSIF TG_OP = 'INSERT' THEN
        INSERT INTO "toolkit"."trades_log" (series_id, lo, hi)
        SELECT series_id, min(b), max(b) + interval '60 seconds'
        FROM (SELECT series_id, b, date_bin(interval '7 days', b, timestamptz 'epoch') AS cell,
                     b - interval '60 seconds' * row_number() OVER (PARTITION BY series_id ORDER BY b) AS run
              FROM (SELECT DISTINCT series_id, date_bin(interval '60 seconds', ts, timestamptz 'epoch') AS b
                    FROM new_rows) AS touched) AS numbered
        GROUP BY series_id, cell, run;
    ELSIF TG_OP = 'DELETE' THEN
        INSERT INTO "toolkit"."trades_log" (series_id, lo, hi)
        SELECT series_id, min(b), max(b) + interval '60 seconds'
        FROM (SELECT series_id, b, date_bin(interval '7 days', b, timestamptz 'epoch') AS cell,
                     b - interval '60 seconds' * row_number() OVER (PARTITION BY series_id ORDER BY b) AS run
              FROM (SELECT DISTINCT series_id, date_bin(interval '60 seconds', ts, timestamptz 'epoch') AS b
                    FROM old_rows) AS touched) AS numbered
        GROUP BY series_id, cell, run;
    ELSE
        INSERT INTO "toolkit"."trades_log" (series_id, lo, hi)
        SELECT series_id, min(b), max(b) + interval '60 seconds'
        FROM (SELECT series_id, b, date_bin(interval '7 days', b, timestamptz 'epoch') AS cell,
                     b - interval '60 seconds' * row_number() OVER (PARTITION BY series_id ORDER BY b) AS run
              FROM (SELECT DISTINCT series_id, date_bin(interval '60 seconds', ts, timestamptz 'epoch') AS b
                    FROM (SELECT series_id, ts FROM old_rows UNION ALL SELECT series_id, ts FROM new_rows) AS u) AS touched) AS numbered
        GROUP BY series_id, cell, run;
    END IF;
    RETURN NULL;
END
$changed$;


CREATE TABLE IF NOT EXISTS "toolkit"."metrics_blocks" (
    series_id integer NOT NULL,
    lo timestamptz NOT NULL,
    hi timestamptz NOT NULL,
    _rows integer NOT NULL,
    _first timestamptz NOT NULL,
    _last timestamptz NOT NULL,
    _header bytea NOT NULL,
    "ts" bytea NOT NULL,
    "value" bytea NOT NULL,
    CONSTRAINT "metrics_blocks_pkey" PRIMARY KEY (series_id, lo),
    CONSTRAINT span_holds_points CHECK (lo <= _first AND _first <= _last AND _last < hi)
) PARTITION BY RANGE (lo);


ALTER TABLE "toolkit"."metrics_blocks" ALTER "_header" SET STORAGE EXTERNAL, ALTER "ts" SET STORAGE EXTERNAL, ALTER "value" SET STORAGE EXTERNAL;


CREATE OR REPLACE FUNCTION "toolkit"."metrics_changed_v1"() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $changed$
BEGIN
    -- points that move between rows and blocks change no answer
    IF current_setting('toolkit.moving', true) = 'on' THEN
        RETURN NULL;
    ELSIF TG_OP = 'INSERT' THEN
        INSERT INTO "toolkit"."metrics_log" (series_id, lo, hi)
        SELECT series_id, min(b), max(b) + interval '300 seconds'
        FROM (SELECT series_id, b, date_bin(interval '7 days', b, timestamptz 'epoch') AS cell,
                     b - interval '300 seconds' * row_number() OVER (PARTITION BY series_id ORDER BY b) AS run
              FROM (SELECT DISTINCT series_id, date_bin(interval '300 seconds', ts, timestamptz 'epoch') AS b
                    FROM new_rows) AS touched) AS numbered
        GROUP BY series_id, cell, run;
    ELSIF TG_OP = 'DELETE' THEN
        INSERT INTO "toolkit"."metrics_log" (series_id, lo, hi)
        SELECT series_id, min(b), max(b) + interval '300 seconds'
        FROM (SELECT series_id, b, date_bin(interval '7 days', b, timestamptz 'epoch') AS cell,
                     b - interval '300 seconds' * row_number() OVER (PARTITION BY series_id ORDER BY b) AS run
              FROM (SELECT DISTINCT series_id, date_bin(interval '300 seconds', ts, timestamptz 'epoch') AS b
                    FROM old_rows) AS touched) AS numbered
        GROUP BY series_id, cell, run;
    ELSE
        INSERT INTO "toolkit"."metrics_log" (series_id, lo, hi)
        SELECT series_id, min(b), max(b) + interval '300 seconds'
        FROM (SELECT series_id, b, date_bin(interval '7 days', b, timestamptz 'epoch') AS cell,
                     b - interval '300 seconds' * row_number() OVER (PARTITION BY series_id ORDER BY b) AS run
              FROM (SELECT DISTINCT series_id, date_bin(interval '300 seconds', ts, timestamptz 'epoch') AS b
                    FROM (SELECT series_id, ts FROM old_rows UNION ALL SELECT series_id, ts FROM new_rows) AS u) AS touched) AS numbered
        GROUP BY series_id, cell, run;
    END IF;
    RETURN NULL;
END
$changed$;


UPDATE toolkit.toolkit_version SET version_num='0003' WHERE toolkit.toolkit_version.version_num = '0002';

COMMIT;

BEGIN;

-- Running upgrade 0003 -> 0004

CREATE TABLE "toolkit".job_run (
    id bigint GENERATED ALWAYS AS IDENTITY CONSTRAINT job_run_pkey PRIMARY KEY,
    job text NOT NULL,
    started_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    ended_at timestamptz,
    status text NOT NULL DEFAULT 'running' CONSTRAINT job_run_status_is_known
        CHECK (status IN ('running', 'done', 'nothing', 'cut', 'skipped', 'failed', 'killed')),
    pid integer NOT NULL DEFAULT pg_backend_pid(),
    targets text[] NOT NULL DEFAULT '{}',
    counts jsonb NOT NULL DEFAULT '{}',
    said text[] NOT NULL DEFAULT '{}'
);
COMMENT ON TABLE "toolkit".job_run IS
    'runs of maintenance jobs: what each did (counts) and what it could not do (said)';
CREATE INDEX job_run_job ON "toolkit".job_run (job, started_at);


UPDATE toolkit.toolkit_version SET version_num='0004' WHERE toolkit.toolkit_version.version_num = '0003';

COMMIT;

BEGIN;

-- Running upgrade 0004 -> 0005

ALTER TABLE "toolkit".dataset ADD COLUMN frozen_before timestamptz;
COMMENT ON COLUMN "toolkit".dataset.frozen_before IS
    'points before this time may be gone: rollups stand for them, and nothing is written there';
ALTER TABLE "toolkit".rollup ADD COLUMN gone_before timestamptz;
COMMENT ON COLUMN "toolkit".rollup.gone_before IS
    'buckets before this time are gone, too; NULL where none is';


CREATE OR REPLACE FUNCTION "toolkit".ensure_partitions(
    dataset text, wanted_from timestamptz, wanted_to timestamptz
) RETURNS integer
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp AS $ensure$
DECLARE
    declared jsonb;
    mark timestamptz;
BEGIN
    SELECT d.spec, d.frozen_before INTO declared, mark FROM "toolkit".dataset AS d WHERE d.name = 
        regexp_replace(dataset, '_blocks$', '');
    IF declared IS NULL THEN
        RAISE EXCEPTION 'no dataset %', quote_literal(dataset) USING ERRCODE = 'undefined_object';
    END IF;
    IF NOT has_table_privilege(
        coalesce(nullif(current_setting('role'), 'none'), session_user),
        format('%I.%I', 'toolkit', dataset), 'INSERT') THEN
        RAISE EXCEPTION 'adding partitions to % needs the right to INSERT there', dataset
            USING ERRCODE = 'insufficient_privilege';
    END IF;
    IF dataset ~ '_blocks$' THEN
        mark := NULL;  -- points that are left there may become blocks still
    ELSIF wanted_to <= mark THEN
        RAISE EXCEPTION 'no partition of % is made before %: retention has dropped what was '
            'there, and rollups stand for it; write from then on', dataset, mark
            USING ERRCODE = 'object_not_in_prerequisite_state';
    END IF;
    RETURN "toolkit".add_partitions_v1(
        dataset, declared ->> 'partition', greatest(wanted_from, mark), wanted_to,
        CASE WHEN declared ->> 'changelog' = 'trigger' AND dataset !~ '_blocks$'
             THEN dataset || '_changed_v1' END);
END
$ensure$;
COMMENT ON FUNCTION "toolkit".ensure_partitions(text, timestamptz, timestamptz) IS
    'adds the partitions a dataset, or its table of blocks, lacks in [from, to), '
    'none of rows before dataset.frozen_before; returns how many';


CREATE OR REPLACE FUNCTION "toolkit"."candles_changed_v1"() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $changed$
DECLARE low timestamptz; mark timestamptz; BEGIN
    -- points that move between rows and blocks change no answer
    IF current_setting('toolkit.moving', true) = 'on' THEN
        RETURN NULL;
    ELSIF TG_OP = 'INSERT' THEN
        WITH logged AS (
        INSERT INTO "toolkit"."candles_log" (series_id, lo, hi)
        SELECT series_id, min(b), max(b) + interval '300 seconds'
        FROM (SELECT series_id, b, date_bin(interval '7 days', b, timestamptz 'epoch') AS cell,
                     b - interval '300 seconds' * row_number() OVER (PARTITION BY series_id ORDER BY b) AS run
              FROM (SELECT DISTINCT series_id, date_bin(interval '300 seconds', ts, timestamptz 'epoch') AS b
                    FROM new_rows) AS touched) AS numbered
        GROUP BY series_id, cell, run
        RETURNING lo)
        SELECT min(lo) INTO low FROM logged;
    ELSIF TG_OP = 'DELETE' THEN
        WITH logged AS (
        INSERT INTO "toolkit"."candles_log" (series_id, lo, hi)
        SELECT series_id, min(b), max(b) + interval '300 seconds'
        FROM (SELECT series_id, b, date_bin(interval '7 days', b, timestamptz 'epoch') AS cell,
                     b - interval '300 seconds' * row_number() OVER (PARTITION BY series_id ORDER BY b) AS run
              FROM (SELECT DISTINCT series_id, date_bin(interval '300 seconds', ts, timestamptz 'epoch') AS b
                    FROM old_rows) AS touched) AS numbered
        GROUP BY series_id, cell, run
        RETURNING lo)
        SELECT min(lo) INTO low FROM logged;
    ELSE
        WITH logged AS (
        INSERT INTO "toolkit"."candles_log" (series_id, lo, hi)
        SELECT series_id, min(b), max(b) + interval '300 seconds'
        FROM (SELECT series_id, b, date_bin(interval '7 days', b, timestamptz 'epoch') AS cell,
                     b - interval '300 seconds' * row_number() OVER (PARTITION BY series_id ORDER BY b) AS run
              FROM (SELECT DISTINCT series_id, date_bin(interval '300 seconds', ts, timestamptz 'epoch') AS b
                    FROM (SELECT series_id, ts FROM old_rows UNION ALL SELECT series_id, ts FROM new_rows) AS u) AS touched) AS numbered
        GROUP BY series_id, cell, run
        RETURNING lo)
        SELECT min(lo) INTO low FROM logged;
    END IF;
    IF current_setting('transaction_isolation') NOT IN ('read committed', 'read uncommitted') THEN
        PERFORM FROM "toolkit"."dataset" AS d WHERE d.name = 'candles' FOR SHARE;
    END IF;
    SELECT d.frozen_before INTO mark FROM "toolkit"."dataset" AS d WHERE d.name = 'candles';
    IF low < mark THEN
        RAISE EXCEPTION 'points of candles before % are frozen: retention may have dropped '
            'some, and rollups stand for them; write and delete from then on', mark
            USING ERRCODE = 'object_not_in_prerequisite_state';
    END IF;
    RETURN NULL;
END
$changed$;


CREATE OR REPLACE FUNCTION "toolkit"."trades_changed_v1"() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $changed$
DECLARE low timestamptz; mark timestamptz; BEGIN
    -- points that move between rows and blocks change no answer
    IF current_setting('toolkit.moving', true) = 'on' THEN
        RETURN NULL;
    ELSIF TG_OP = 'INSERT' THEN
        WITH logged AS (
        INSERT INTO "toolkit"."trades_log" (series_id, lo, hi)
        SELECT series_id, min(b), max(b) + interval '60 seconds'
        FROM (SELECT series_id, b, date_bin(interval '7 days', b, timestamptz 'epoch') AS cell,
                     b - interval '60 seconds' * row_number() OVER (PARTITION BY series_id ORDER BY b) AS run
              FROM (SELECT DISTINCT series_id, date_bin(interval '60 seconds', ts, timestamptz 'epoch') AS b
                    FROM new_rows) AS touched) AS numbered
        GROUP BY series_id, cell, run
        RETURNING lo)
        SELECT min(lo) INTO low FROM logged;
    ELSIF TG_OP = 'DELETE' THEN
        WITH logged AS (
        INSERT INTO "toolkit"."trades_log" (series_id, lo, hi)
        SELECT series_id, min(b), max(b) + interval '60 seconds'
        FROM (SELECT series_id, b, date_bin(interval '7 days', b, timestamptz 'epoch') AS cell,
                     b - interval '60 seconds' * row_number() OVER (PARTITION BY series_id ORDER BY b) AS run
              FROM (SELECT DISTINCT series_id, date_bin(interval '60 seconds', ts, timestamptz 'epoch') AS b
                    FROM old_rows) AS touched) AS numbered
        GROUP BY series_id, cell, run
        RETURNING lo)
        SELECT min(lo) INTO low FROM logged;
    ELSE
        WITH logged AS (
        INSERT INTO "toolkit"."trades_log" (series_id, lo, hi)
        SELECT series_id, min(b), max(b) + interval '60 seconds'
        FROM (SELECT series_id, b, date_bin(interval '7 days', b, timestamptz 'epoch') AS cell,
                     b - interval '60 seconds' * row_number() OVER (PARTITION BY series_id ORDER BY b) AS run
              FROM (SELECT DISTINCT series_id, date_bin(interval '60 seconds', ts, timestamptz 'epoch') AS b
                    FROM (SELECT series_id, ts FROM old_rows UNION ALL SELECT series_id, ts FROM new_rows) AS u) AS touched) AS numbered
        GROUP BY series_id, cell, run
        RETURNING lo)
        SELECT min(lo) INTO low FROM logged;
    END IF;
    IF current_setting('transaction_isolation') NOT IN ('read committed', 'read uncommitted') THEN
        PERFORM FROM "toolkit"."dataset" AS d WHERE d.name = 'trades' FOR SHARE;
    END IF;
    SELECT d.frozen_before INTO mark FROM "toolkit"."dataset" AS d WHERE d.name = 'trades';
    IF low < mark THEN
        RAISE EXCEPTION 'points of trades before % are frozen: retention may have dropped '
            'some, and rollups stand for them; write and delete from then on', mark
            USING ERRCODE = 'object_not_in_prerequisite_state';
    END IF;
    RETURN NULL;
END
$changed$;


CREATE OR REPLACE FUNCTION "toolkit"."metrics_changed_v1"() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $changed$
DECLARE low timestamptz; mark timestamptz; BEGIN
    -- points that move between rows and blocks change no answer
    IF current_setting('toolkit.moving', true) = 'on' THEN
        RETURN NULL;
    ELSIF TG_OP = 'INSERT' THEN
        WITH logged AS (
        INSERT INTO "toolkit"."metrics_log" (series_id, lo, hi)
        SELECT series_id, min(b), max(b) + interval '300 seconds'
        FROM (SELECT series_id, b, date_bin(interval '7 days', b, timestamptz 'epoch') AS cell,
                     b - interval '300 seconds' * row_number() OVER (PARTITION BY series_id ORDER BY b) AS run
              FROM (SELECT DISTINCT series_id, date_bin(interval '300 seconds', ts, timestamptz 'epoch') AS b
                    FROM new_rows) AS touched) AS numbered
        GROUP BY series_id, cell, run
        RETURNING lo)
        SELECT min(lo) INTO low FROM logged;
    ELSIF TG_OP = 'DELETE' THEN
        WITH logged AS (
        INSERT INTO "toolkit"."metrics_log" (series_id, lo, hi)
        SELECT series_id, min(b), max(b) + interval '300 seconds'
        FROM (SELECT series_id, b, date_bin(interval '7 days', b, timestamptz 'epoch') AS cell,
                     b - interval '300 seconds' * row_number() OVER (PARTITION BY series_id ORDER BY b) AS run
              FROM (SELECT DISTINCT series_id, date_bin(interval '300 seconds', ts, timestamptz 'epoch') AS b
                    FROM old_rows) AS touched) AS numbered
        GROUP BY series_id, cell, run
        RETURNING lo)
        SELECT min(lo) INTO low FROM logged;
    ELSE
        WITH logged AS (
        INSERT INTO "toolkit"."metrics_log" (series_id, lo, hi)
        SELECT series_id, min(b), max(b) + interval '300 seconds'
        FROM (SELECT series_id, b, date_bin(interval '7 days', b, timestamptz 'epoch') AS cell,
                     b - interval '300 seconds' * row_number() OVER (PARTITION BY series_id ORDER BY b) AS run
              FROM (SELECT DISTINCT series_id, date_bin(interval '300 seconds', ts, timestamptz 'epoch') AS b
                    FROM (SELECT series_id, ts FROM old_rows UNION ALL SELECT series_id, ts FROM new_rows) AS u) AS touched) AS numbered
        GROUP BY series_id, cell, run
        RETURNING lo)
        SELECT min(lo) INTO low FROM logged;
    END IF;
    IF current_setting('transaction_isolation') NOT IN ('read committed', 'read uncommitted') THEN
        PERFORM FROM "toolkit"."dataset" AS d WHERE d.name = 'metrics' FOR SHARE;
    END IF;
    SELECT d.frozen_before INTO mark FROM "toolkit"."dataset" AS d WHERE d.name = 'metrics';
    IF low < mark THEN
        RAISE EXCEPTION 'points of metrics before % are frozen: retention may have dropped '
            'some, and rollups stand for them; write and delete from then on', mark
            USING ERRCODE = 'object_not_in_prerequisite_state';
    END IF;
    RETURN NULL;
END
$changed$;


UPDATE toolkit.toolkit_version SET version_num='0005' WHERE toolkit.toolkit_version.version_num = '0004';

COMMIT;

BEGIN;

-- Running upgrade 0005 -> 0006

CREATE VIEW "toolkit".performance_summary AS
WITH leaf AS (
    SELECT d.id, k.kind, c.oid, c.reltoastrelid
    FROM "toolkit".dataset AS d
    CROSS JOIN LATERAL (
        SELECT 'rows', d.name
        UNION ALL SELECT 'blocks', d.name || '_blocks'
        UNION ALL SELECT 'log', d.name || '_log'
        UNION ALL SELECT 'rollups', r.relation
        FROM "toolkit".rollup AS r WHERE r.dataset_id = d.id
    ) AS k (kind, relation)
    JOIN pg_namespace AS n ON n.nspname = 'toolkit'
    JOIN pg_class AS p ON p.relnamespace = n.oid AND p.relname = k.relation
    JOIN LATERAL (
        SELECT p.oid WHERE p.relkind = 'r'
        UNION ALL SELECT i.inhrelid FROM pg_inherits AS i WHERE i.inhparent = p.oid
    ) AS t (oid) ON true
    JOIN pg_class AS c ON c.oid = t.oid
), counted AS (
    SELECT l.id, l.kind, pg_total_relation_size(l.oid) AS bytes,
           pg_stat_get_numscans(l.oid) AS table_scans, stored.index_scans,
           stored.fetched, stored.hits,
           pg_stat_get_live_tuples(l.oid) AS live, pg_stat_get_dead_tuples(l.oid) AS dead,
           pg_stat_get_last_vacuum_time(l.oid) AS vacuumed,
           pg_stat_get_last_autovacuum_time(l.oid) AS autovacuumed,
           pg_stat_get_last_analyze_time(l.oid) AS analyzed,
           pg_stat_get_last_autoanalyze_time(l.oid) AS autoanalyzed
    FROM leaf AS l
    CROSS JOIN LATERAL (
        SELECT sum(pg_stat_get_numscans(s.oid)) FILTER (WHERE s.is_index) AS index_scans,
               sum(pg_stat_get_blocks_fetched(s.oid)) AS fetched,
               sum(pg_stat_get_blocks_hit(s.oid)) AS hits
        FROM (
            SELECT l.oid, false
            UNION ALL SELECT i.indexrelid, true FROM pg_index AS i WHERE i.indrelid = l.oid
            UNION ALL SELECT l.reltoastrelid, false WHERE l.reltoastrelid <> 0
            UNION ALL SELECT i.indexrelid, false FROM pg_index AS i
            WHERE i.indrelid = l.reltoastrelid
        ) AS s (oid, is_index)
    ) AS stored
)
SELECT d.name AS dataset,
       count(c.id) FILTER (WHERE c.kind = 'rows') AS partitions,
       coalesce(sum(c.table_scans), 0)::bigint AS table_scans,
       coalesce(sum(c.index_scans), 0)::bigint AS index_scans,
       coalesce(sum(c.fetched - c.hits), 0)::bigint AS reads,
       coalesce(sum(c.hits), 0)::bigint AS hits,
       round(100 * sum(c.hits) / nullif(sum(c.fetched), 0), 1) AS hit_percent,
       coalesce(sum(c.live) FILTER (WHERE c.kind = 'rows'), 0)::bigint AS live_rows,
       coalesce(sum(c.dead) FILTER (WHERE c.kind = 'rows'), 0)::bigint AS dead_rows,
       coalesce(sum(c.bytes) FILTER (WHERE c.kind = 'rows'), 0)::bigint AS row_bytes,
       coalesce(sum(c.bytes) FILTER (WHERE c.kind = 'blocks'), 0)::bigint AS block_bytes,
       coalesce(sum(c.bytes) FILTER (WHERE c.kind = 'rollups'), 0)::bigint AS rollup_bytes,
       coalesce(sum(c.bytes) FILTER (WHERE c.kind = 'log'), 0)::bigint AS log_bytes,
       max(c.vacuumed) FILTER (WHERE c.kind = 'rows') AS last_vacuum,
       max(c.autovacuumed) FILTER (WHERE c.kind = 'rows') AS last_autovacuum,
       min(greatest(c.vacuumed, c.autovacuumed)) FILTER (WHERE c.kind = 'rows') AS oldest_vacuum,
       count(c.id) FILTER (WHERE c.kind = 'rows' AND c.vacuumed IS NULL
                                 AND c.autovacuumed IS NULL) AS never_vacuumed,
       max(c.analyzed) FILTER (WHERE c.kind = 'rows') AS last_analyze,
       max(c.autoanalyzed) FILTER (WHERE c.kind = 'rows') AS last_autoanalyze,
       min(greatest(c.analyzed, c.autoanalyzed)) FILTER (WHERE c.kind = 'rows') AS oldest_analyze,
       count(c.id) FILTER (WHERE c.kind = 'rows' AND c.analyzed IS NULL
                                 AND c.autoanalyzed IS NULL) AS never_analyzed
FROM "toolkit".dataset AS d
LEFT JOIN counted AS c ON c.id = d.id
GROUP BY d.id, d.name
ORDER BY d.name;
COMMENT ON VIEW "toolkit".performance_summary IS
    'a row a dataset, by the statistics of this server: scans and pages (reads from outside its '
    'memory, hits in it) of all its tables; live and dead rows, vacuums and analyzes of the '
    'partitions of its rows: the latest, and of the one that has waited longest';


CREATE FUNCTION "toolkit".slow_queries_v1() RETURNS TABLE (
    role name, calls bigint, total_ms double precision, mean_ms double precision,
    "rows" bigint, hit_percent numeric, query_id bigint, query text
)
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $slow$
DECLARE
    place name := (SELECT n.nspname FROM pg_extension AS e
                   JOIN pg_namespace AS n ON n.oid = e.extnamespace
                   WHERE e.extname = 'pg_stat_statements');
BEGIN
    IF place IS NULL THEN
        RETURN;
    END IF;
    RETURN QUERY EXECUTE format($query$
        SELECT pg_get_userbyid(s.userid), sum(s.calls)::bigint, sum(s.total_exec_time),
               sum(s.total_exec_time) / greatest(sum(s.calls), 1), sum(s.rows)::bigint,
               round(100 * sum(s.shared_blks_hit)
                     / nullif(sum(s.shared_blks_hit + s.shared_blks_read), 0), 1),
               s.queryid, min(s.query)
        FROM %I.pg_stat_statements AS s
        LEFT JOIN pg_namespace AS n ON n.nspname = $1
        LEFT JOIN pg_roles AS o ON o.oid = n.nspowner AND NOT o.rolsuper
        WHERE s.dbid = (SELECT d.oid FROM pg_database AS d WHERE d.datname = current_database())
          AND s.queryid IS NOT NULL
          AND (s.userid = o.oid OR strpos(s.query, $2) > 0 OR s.query ~ $3)
        GROUP BY s.userid, s.queryid
        ORDER BY 3 DESC
    $query$, place) USING 'toolkit'::name,
        '"' || replace('toolkit', '"', '""') || '".',
        CASE WHEN 'toolkit' ~ '^[a-z_][a-z0-9_]*$' THEN '[[:<:]]' || 'toolkit' || '[.]' END;
EXCEPTION
    WHEN object_not_in_prerequisite_state OR undefined_column OR undefined_table
         OR insufficient_privilege THEN
        RETURN;  -- slow_queries_state says which
END
$slow$;
CREATE VIEW "toolkit".slow_queries AS SELECT * FROM "toolkit".slow_queries_v1();
COMMENT ON VIEW "toolkit".slow_queries IS
    'statements of the owner of this schema, and those that name it, the costliest first, as '
    'pg_stat_statements has them; slow_queries_state says whether, since when, and why not';


CREATE FUNCTION "toolkit".slow_queries_state_v1() RETURNS TABLE (
    is_available boolean, reason text, since timestamptz, hidden bigint
)
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $state$
DECLARE
    place name := (SELECT n.nspname FROM pg_extension AS e
                   JOIN pg_namespace AS n ON n.oid = e.extnamespace
                   WHERE e.extname = 'pg_stat_statements');
BEGIN
    is_available := false;
    IF place IS NULL THEN
        reason := 'this database has no extension pg_stat_statements; as an administrator: '
            'CREATE EXTENSION pg_stat_statements';
        RETURN NEXT;
        RETURN;
    END IF;
    EXECUTE format($query$
        SELECT i.stats_reset,
               (SELECT count(*) FROM %1$I.pg_stat_statements AS s
                WHERE s.queryid IS NULL AND s.total_exec_time >= 0
                  AND s.dbid = (SELECT d.oid FROM pg_database AS d
                                WHERE d.datname = current_database()))
        FROM %1$I.pg_stat_statements_info AS i
    $query$, place) INTO since, hidden;
    is_available := true;
    IF hidden > 0 THEN
        reason := format('%s statements of other roles are hidden; as an administrator: '
            'GRANT pg_read_all_stats TO %I', hidden, current_user);
    END IF;
    RETURN NEXT;
EXCEPTION
    WHEN object_not_in_prerequisite_state THEN
        reason := 'pg_stat_statements is not loaded; add it to shared_preload_libraries, and '
            'start the server anew';
        RETURN NEXT;
    WHEN undefined_column OR undefined_table THEN
        reason := 'pg_stat_statements is of an older server; as its owner: '
            'ALTER EXTENSION pg_stat_statements UPDATE';
        RETURN NEXT;
    WHEN insufficient_privilege THEN
        reason := format('the role %I may not read pg_stat_statements: %s', current_user, SQLERRM);
        RETURN NEXT;
END
$state$;
CREATE VIEW "toolkit".slow_queries_state AS SELECT * FROM "toolkit".slow_queries_state_v1();
COMMENT ON VIEW "toolkit".slow_queries_state IS
    'whether slow_queries can tell anything, and why not; since when statements are counted, and '
    'how many of other roles are hidden from who asks';


UPDATE toolkit.toolkit_version SET version_num='0006' WHERE toolkit.toolkit_version.version_num = '0005';

COMMIT;

BEGIN;

-- Running upgrade 0006 -> 0007

CREATE TABLE "toolkit".looked_at (
    job text NOT NULL,
    dataset_id integer NOT NULL CONSTRAINT looked_at_dataset_id_fkey
        REFERENCES "toolkit".dataset (id) ON DELETE CASCADE,
    start timestamptz NOT NULL,
    series_to integer,
    at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT looked_at_pkey PRIMARY KEY (job, dataset_id, start)
);
COMMENT ON TABLE "toolkit".looked_at IS
    'when jobs that look at everything have looked at the part of a dataset that begins at start; '
    'where series_to is set, at the series up to that one only';

CREATE TABLE "toolkit".popularity (
    series_id integer NOT NULL CONSTRAINT popularity_series_id_fkey
        REFERENCES "toolkit".series (id) ON DELETE CASCADE,
    step text NOT NULL,
    reads double precision NOT NULL,
    at timestamptz NOT NULL DEFAULT now(),
    width interval NOT NULL,
    behind interval NOT NULL,
    CONSTRAINT popularity_pkey PRIMARY KEY (series_id, step)
);
COMMENT ON TABLE "toolkit".popularity IS
    'how often series are read at a step (empty: points), halved every day; the last such read '
    'was of a range so wide that ended so long before then';

CREATE TABLE "toolkit".rollup_head (
    id integer NOT NULL CONSTRAINT rollup_head_pkey PRIMARY KEY
        CONSTRAINT rollup_head_id_fkey REFERENCES "toolkit".rollup (id) ON DELETE CASCADE,
    dataset_id integer NOT NULL CONSTRAINT rollup_head_dataset_id_fkey
        REFERENCES "toolkit".dataset (id) ON DELETE CASCADE,
    since timestamptz NOT NULL,
    cursor pg_snapshot NOT NULL,
    pass_to pg_snapshot,
    pass_series integer,
    pass_lo timestamptz
);
COMMENT ON TABLE "toolkit".rollup_head IS
    'of changes at or after since a rollup has followed those visible in cursor, too: '
    'where there is much to follow, the newest comes first';


UPDATE toolkit.toolkit_version SET version_num='0007' WHERE toolkit.toolkit_version.version_num = '0006';

COMMIT;

BEGIN;

-- Running upgrade 0007 -> 0008

CREATE TABLE "toolkit".doctor_snapshot (
    id bigint GENERATED ALWAYS AS IDENTITY CONSTRAINT doctor_snapshot_pkey PRIMARY KEY,
    taken_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    counted_since timestamptz,
    statements jsonb NOT NULL,
    indexes text[] NOT NULL
);
COMMENT ON TABLE "toolkit".doctor_snapshot IS
    'what toolkit doctor compares with: calls and milliseconds of statements by their id, and '
    'which indexes there were';


UPDATE toolkit.toolkit_version SET version_num='0008' WHERE toolkit.toolkit_version.version_num = '0007';

COMMIT;

