-- Orders that were opened: whose they are, what is charged for, until when segments are accepted.

-- A row an opening. An order that was forgotten can be opened again; then it has a row for each.
CREATE TABLE orders (
    service_order_number text COLLATE "C" NOT NULL CHECK (service_order_number <> ''),
    tenant               text COLLATE "C" NOT NULL CHECK (tenant <> ''),
    client               text NOT NULL,
    service              text NOT NULL,
    attributes           jsonb NOT NULL CHECK (jsonb_typeof(attributes) = 'object'),
    server_timestamp_ms  bigint NOT NULL CHECK (server_timestamp_ms >= 0),
    report_interval_ms   bigint NOT NULL CHECK (report_interval_ms >= 1),
    accept_until_ms      bigint NOT NULL CHECK (accept_until_ms >= server_timestamp_ms),
    source_partition     integer NOT NULL CHECK (source_partition >= 0),
    source_offset        bigint NOT NULL CHECK (source_offset >= 0),

    server_timestamp     timestamptz GENERATED ALWAYS AS (ledger_timestamp(server_timestamp_ms)) STORED,
    accept_until         timestamptz GENERATED ALWAYS AS (ledger_timestamp(accept_until_ms)) STORED,

    orders_topic         text NOT NULL,
    orders_partition     integer NOT NULL,
    orders_offset        bigint NOT NULL,
    orders_append_ms     bigint NOT NULL,
    recorded_at          timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (service_order_number, source_offset)
);

CREATE INDEX orders_by_tenant ON orders (tenant, server_timestamp_ms);

COMMENT ON TABLE orders IS
    'Every opening of an order, once. Append only: a trigger refuses changes.';
COMMENT ON COLUMN orders.source_offset IS
    'Where the opening lies in the segments, in the same partition.';

CREATE TRIGGER append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON orders
    FOR EACH STATEMENT EXECUTE FUNCTION ledger_refuse_change();

-- Each order's latest revision, beside the opening that it rests on: the last one before the
-- total's last record. NULL where nobody opened the order.
CREATE VIEW tenant_totals AS
    SELECT
        opened.tenant,
        opened.client,
        opened.service,
        opened.attributes,
        opened.server_timestamp_ms,
        opened.accept_until_ms,
        total.*
    FROM latest_order_totals AS total
    LEFT JOIN LATERAL (
        SELECT * FROM orders
        WHERE orders.service_order_number = total.service_order_number
            AND orders.source_offset <= total.source_offset
        ORDER BY orders.source_offset DESC LIMIT 1
    ) AS opened ON true;

-- Orders that were opened and have no total since: not settled yet, or nothing was ever reported.
CREATE VIEW orders_without_total AS
    SELECT * FROM orders
    WHERE NOT EXISTS (
        SELECT FROM order_totals AS total
        WHERE total.service_order_number = orders.service_order_number
            AND total.source_offset > orders.source_offset
    );
