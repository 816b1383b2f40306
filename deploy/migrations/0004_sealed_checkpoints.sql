-- Every checkpoint that a sealer has signed: a copy in other hands than the sealed log's own.

CREATE TABLE sealed_checkpoints (
    origin           text COLLATE "C" NOT NULL,
    size             bigint NOT NULL CHECK (size >= 0),
    root             bytea NOT NULL CHECK (length(root) = 32),
    totals_topic     text NOT NULL,
    totals_partition integer NOT NULL CHECK (totals_partition >= 0),
    first_offset     bigint NOT NULL CHECK (first_offset >= 0),
    next_offset      bigint NOT NULL CHECK (next_offset >= first_offset),
    note             text NOT NULL,
    note_sha256      bytea NOT NULL,
    recorded_at      timestamptz NOT NULL DEFAULT now(),
    -- A checkpoint is signed again where the key was changed, or the log was closed.
    PRIMARY KEY (origin, size, note_sha256)
);

COMMENT ON TABLE sealed_checkpoints IS
    'Signed checkpoints of the sealed log. Append only: a trigger refuses changes.';
COMMENT ON COLUMN sealed_checkpoints.note IS
    'The checkpoint as it was signed; what stands in the other columns is read from it.';

CREATE TRIGGER append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON sealed_checkpoints
    FOR EACH STATEMENT EXECUTE FUNCTION ledger_refuse_change();
