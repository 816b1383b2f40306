-- The ledger: every revision of every order's total, once, never changed afterwards.
-- Times are milliseconds since the epoch (the truth) with a timestamptz beside them (for reading).

-- NULL after the year 9999: PostgreSQL could go further, most of its clients cannot read it.
-- Immutable in fact: a step of '24 hours' is a length, other than '1 day', so no time zone matters.
-- Whole 24 hours first, because an interval times a number goes through a double.
CREATE FUNCTION ledger_timestamp(epoch_ms bigint) RETURNS timestamptz
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    RETURN CASE
        WHEN epoch_ms BETWEEN 0 AND 253402300799999 THEN
            timestamptz '1970-01-01 00:00:00+00'
            + (epoch_ms / 86400000) * interval '24 hours'
            + (epoch_ms % 86400000) * interval '1 millisecond'
    END;

CREATE TABLE order_totals (
    service_order_number text COLLATE "C" NOT NULL,
    revision             integer NOT NULL,
    status               text NOT NULL,
    duration_ms          bigint NOT NULL,
    upper_bound_ms       bigint NOT NULL,
    started_ms           bigint NOT NULL,
    ended_ms             bigint NOT NULL,
    intervals            jsonb NOT NULL,
    end_number           bigint,
    missing_numbers      jsonb NOT NULL,
    segments             bigint NOT NULL,
    duplicates           bigint NOT NULL,
    overlap_ms           bigint NOT NULL,
    numbers_after_end    bigint NOT NULL,
    digest               text NOT NULL,
    previous_digest      text NOT NULL,
    source_partition     integer NOT NULL,
    source_offset        bigint NOT NULL,
    settled_at_ms        bigint NOT NULL,

    started_at           timestamptz GENERATED ALWAYS AS (ledger_timestamp(started_ms)) STORED,
    ended_at             timestamptz GENERATED ALWAYS AS (ledger_timestamp(ended_ms)) STORED,
    settled_at           timestamptz GENERATED ALWAYS AS (ledger_timestamp(settled_at_ms)) STORED,

    totals_topic         text NOT NULL,
    totals_partition     integer NOT NULL,
    totals_offset        bigint NOT NULL,
    totals_append_ms     bigint NOT NULL,
    recorded_at          timestamptz NOT NULL DEFAULT now(),

    CONSTRAINT order_number_given CHECK (service_order_number <> ''),
    CONSTRAINT revision_from_one CHECK (revision >= 1),
    CONSTRAINT status_known CHECK (status IN ('COMPLETE', 'INCOMPLETE', 'ABANDONED')),
    CONSTRAINT times_in_order CHECK (0 <= started_ms AND started_ms <= ended_ms),
    CONSTRAINT duration_within_bounds CHECK (
        0 <= duration_ms AND duration_ms <= upper_bound_ms
        AND upper_bound_ms <= ended_ms - started_ms
    ),
    CONSTRAINT complete_means_complete CHECK (
        status <> 'COMPLETE' OR (
            upper_bound_ms = duration_ms AND end_number IS NOT NULL AND missing_numbers = '[]'
        )
    ),
    CONSTRAINT lists_are_lists CHECK (
        jsonb_typeof(intervals) = 'array' AND jsonb_typeof(missing_numbers) = 'array'
    ),
    CONSTRAINT end_number_from_one CHECK (end_number >= 1),
    CONSTRAINT counts_not_negative CHECK (
        segments >= 0 AND duplicates >= 0 AND overlap_ms >= 0 AND numbers_after_end >= 0
    ),
    -- Not a regular expression: that took a third of an insert's time.
    CONSTRAINT digests_are_sha256 CHECK (
        length(digest) = 64 AND length(previous_digest) IN (0, 64)
        AND translate(digest || previous_digest, '0123456789abcdef', '') = ''
    ),
    CONSTRAINT source_not_negative CHECK (
        source_partition >= 0 AND source_offset >= 0 AND settled_at_ms >= 0
    ),
    PRIMARY KEY (service_order_number, revision)
);

CREATE INDEX order_totals_by_settled_at ON order_totals (settled_at);

COMMENT ON TABLE order_totals IS
    'Every revision of every order''s total, once. Append only: a trigger refuses changes.';
COMMENT ON COLUMN order_totals.duration_ms IS 'What is proven: the measure of the union.';
COMMENT ON COLUMN order_totals.upper_bound_ms IS 'At most this if all that is missing were found.';

-- A second, different total under an order and revision that is recorded already. The recorded one
-- stands; this one waits for a person. The same content is kept once, however often it came.
CREATE TABLE set_aside_totals (
    LIKE order_totals INCLUDING DEFAULTS INCLUDING GENERATED INCLUDING CONSTRAINTS,
    content_sha256 bytea NOT NULL,
    PRIMARY KEY (service_order_number, revision, content_sha256),
    FOREIGN KEY (service_order_number, revision) REFERENCES order_totals
);

COMMENT ON TABLE set_aside_totals IS
    'Totals that differ from the one recorded under the same order and revision.';

-- Records of the totals topic that are no totals, as they came.
CREATE TABLE unreadable_totals (
    totals_topic     text NOT NULL,
    totals_partition integer NOT NULL,
    totals_offset    bigint NOT NULL,
    totals_append_ms bigint NOT NULL,
    key              bytea,
    value            bytea,
    reason           text NOT NULL,
    detail           text NOT NULL,
    content_sha256   bytea NOT NULL,
    recorded_at      timestamptz NOT NULL DEFAULT now(),
    -- With the content, because a topic that was made anew counts its offsets from 0 again.
    PRIMARY KEY (totals_topic, totals_partition, totals_offset, content_sha256)
);

-- How far the ledger has read. Moved only in the transaction that writes the rows before it.
CREATE TABLE ledger_offsets (
    topic       text NOT NULL,
    partition   integer NOT NULL CHECK (partition >= 0),
    next_offset bigint NOT NULL CHECK (next_offset >= 0),
    topic_id    text,
    updated_at  timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (topic, partition)
);

COMMENT ON COLUMN ledger_offsets.topic_id IS
    'Kafka''s id of the topic: another topic of the same name has another. NULL where unknown.';

CREATE FUNCTION ledger_refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'table % is append only: % refused', TG_TABLE_NAME, TG_OP
        USING ERRCODE = 'restrict_violation';
END $$;

CREATE TRIGGER append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON order_totals
    FOR EACH STATEMENT EXECUTE FUNCTION ledger_refuse_change();
CREATE TRIGGER append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON set_aside_totals
    FOR EACH STATEMENT EXECUTE FUNCTION ledger_refuse_change();
