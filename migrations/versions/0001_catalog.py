"""The catalog: datasets, series, rollups; and the function that adds partitions."""

from __future__ import annotations

from alembic import context, op

from toolkit.ddl import literal
from toolkit.operations import execute

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

TABLES = """
CREATE TABLE "{schema}".dataset (
    id integer GENERATED ALWAYS AS IDENTITY CONSTRAINT dataset_pkey PRIMARY KEY,
    name text NOT NULL CONSTRAINT dataset_name_key UNIQUE,
    spec jsonb NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    prune_to pg_snapshot,
    prune_next pg_snapshot,
    prune_next_at timestamptz,
    pruned_to xid8
);
COMMENT ON TABLE "{schema}".dataset IS
    'families of series with the same columns; spec is the declaration';
COMMENT ON COLUMN "{schema}".dataset.prune_to IS
    'the change log may lose what this snapshot sees; prune_next follows it after a while';
COMMENT ON COLUMN "{schema}".dataset.pruned_to IS
    'the youngest transaction whose row the change log has lost';

CREATE TABLE "{schema}".series (
    id integer GENERATED ALWAYS AS IDENTITY CONSTRAINT series_pkey PRIMARY KEY,
    dataset_id integer NOT NULL
        CONSTRAINT series_dataset_id_fkey REFERENCES "{schema}".dataset (id),
    name text NOT NULL CONSTRAINT series_name_fits CHECK (length(name) BETWEEN 1 AND 500),
    labels jsonb NOT NULL DEFAULT '{{}}'
        CONSTRAINT series_labels_are_an_object CHECK (jsonb_typeof(labels) = 'object'),
    step interval,
    created_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT series_dataset_id_name_key UNIQUE (dataset_id, name)
);
COMMENT ON COLUMN "{schema}".series.step IS
    'distance between neighbouring points where it is regular, else NULL';
CREATE INDEX series_labels ON "{schema}".series USING gin (labels jsonb_path_ops);

CREATE TABLE "{schema}".rollup (
    id integer GENERATED ALWAYS AS IDENTITY CONSTRAINT rollup_pkey PRIMARY KEY,
    dataset_id integer NOT NULL
        CONSTRAINT rollup_dataset_id_fkey REFERENCES "{schema}".dataset (id),
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
COMMENT ON COLUMN "{schema}".rollup.cursor IS
    'what of the change log this rollup has followed: the rows visible in this snapshot';
COMMENT ON COLUMN "{schema}".rollup.pass_to IS
    'where an unfinished refresh is going; it goes on after (pass_series, pass_lo)';
"""

# The parent's lock first, then look again: two writers may want the same partition.
# LIKE and ATTACH instead of PARTITION OF: readers and writers of the parent go on.
ADD_PARTITIONS = """
CREATE FUNCTION "{schema}".add_partitions_v1(
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
        IF to_regclass(format('%I.%I', {schema_text}, part)) IS NULL THEN
            EXECUTE format(
                'LOCK TABLE %I.%I IN SHARE UPDATE EXCLUSIVE MODE', {schema_text}, parent);
            IF to_regclass(format('%I.%I', {schema_text}, part)) IS NULL THEN
                EXECUTE format(
                    'CREATE TABLE %1$I.%2$I (LIKE %1$I.%3$I INCLUDING DEFAULTS '
                    'INCLUDING CONSTRAINTS INCLUDING INDEXES INCLUDING STORAGE) '
                    'WITH (autovacuum_vacuum_insert_scale_factor = 0.02)',
                    {schema_text}, part, parent);
                FOREACH event IN ARRAY CASE WHEN log_function IS NULL THEN '{{}}'::text[]
                                            ELSE '{{INSERT,UPDATE,DELETE}}' END LOOP
                    EXECUTE format(
                        'CREATE TRIGGER %I AFTER %s ON %I.%I REFERENCING %s '
                        'FOR EACH STATEMENT EXECUTE FUNCTION %I.%I()',
                        'log_' || lower(event), event, {schema_text}, part,
                        CASE event WHEN 'INSERT' THEN 'NEW TABLE AS new_rows'
                                   WHEN 'DELETE' THEN 'OLD TABLE AS old_rows'
                                   ELSE 'OLD TABLE AS old_rows NEW TABLE AS new_rows' END,
                        {schema_text}, log_function);
                END LOOP;
                IF log_function IS NOT NULL THEN
                    EXECUTE format(
                        'CREATE TRIGGER log_truncate BEFORE TRUNCATE ON %I.%I '
                        'FOR EACH STATEMENT EXECUTE FUNCTION %I.%I()',
                        {schema_text}, part, {schema_text},
                        replace(log_function, '_changed_v', '_truncated_v'));
                END IF;
                EXECUTE format(
                    'ALTER TABLE %1$I.%2$I ATTACH PARTITION %1$I.%3$I '
                    'FOR VALUES FROM (%4$L) TO (%5$L)',
                    {schema_text}, parent, part, low, high);
                made := made + 1;
            END IF;
        ELSIF NOT EXISTS (
            SELECT FROM pg_inherits
            WHERE inhrelid = to_regclass(format('%I.%I', {schema_text}, part))
              AND inhparent = to_regclass(format('%I.%I', {schema_text}, parent))
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
    "{schema}".add_partitions_v1(text, text, timestamptz, timestamptz, text) FROM PUBLIC;
"""

ENSURE_PARTITIONS = """
CREATE FUNCTION "{schema}".ensure_partitions(
    dataset text, wanted_from timestamptz, wanted_to timestamptz
) RETURNS integer
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp AS $ensure$
DECLARE
    declared jsonb;
BEGIN
    SELECT d.spec INTO declared FROM "{schema}".dataset AS d WHERE d.name = dataset;
    IF declared IS NULL THEN
        RAISE EXCEPTION 'no dataset %', quote_literal(dataset) USING ERRCODE = 'undefined_object';
    END IF;
    IF NOT has_table_privilege(
        coalesce(nullif(current_setting('role'), 'none'), session_user),
        format('%I.%I', {schema_text}, dataset), 'INSERT') THEN
        RAISE EXCEPTION 'adding partitions to % needs the right to INSERT there', dataset
            USING ERRCODE = 'insufficient_privilege';
    END IF;
    RETURN "{schema}".add_partitions_v1(
        dataset, declared ->> 'partition', wanted_from, wanted_to,
        CASE declared ->> 'changelog' WHEN 'trigger' THEN dataset || '_changed_v1' END);
END
$ensure$;
COMMENT ON FUNCTION "{schema}".ensure_partitions(text, timestamptz, timestamptz) IS
    'adds the partitions a dataset lacks in [from, to); returns how many';
"""


# STABLE: the statement sees the snapshot of the one that calls. With the caller's own rights.
RUN_IF_CHANGED = """
CREATE FUNCTION "{schema}".run_if_changed_v1(
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
COMMENT ON FUNCTION "{schema}".run_if_changed_v1(
    text, integer, tstzmultirange, interval, timestamptz, timestamptz, timestamptz) IS
    'runs a statement over changed ranges where there are some: planned late, and for them only'
"""


DROP = """
DROP FUNCTION "{schema}".run_if_changed_v1(
    text, integer, tstzmultirange, interval, timestamptz, timestamptz, timestamptz);
DROP FUNCTION "{schema}".ensure_partitions(text, timestamptz, timestamptz);
DROP FUNCTION "{schema}".add_partitions_v1(text, text, timestamptz, timestamptz, text);
DROP TABLE "{schema}".rollup;
DROP TABLE "{schema}".series;
DROP TABLE "{schema}".dataset
"""


def upgrade() -> None:
    for part in (TABLES, ADD_PARTITIONS, ENSURE_PARTITIONS, RUN_IF_CHANGED):
        _run(part)


def downgrade() -> None:
    _run(DROP)


def _run(text: str) -> None:
    schema = context.config.attributes["schema"]
    filled = text.format(schema=schema.replace('"', '""'), schema_text=literal(schema))
    execute(op, filled.strip().rstrip(";"))
