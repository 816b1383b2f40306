-- Interim totals (RUNNING), upper bounds that are unknown, and gaps.

ALTER TABLE order_totals
    ALTER COLUMN upper_bound_ms DROP NOT NULL,
    -- Of the other columns, so that the totals from before have it too.
    ADD COLUMN gap_ms bigint NOT NULL GENERATED ALWAYS AS (ended_ms - started_ms - duration_ms) STORED,
    DROP CONSTRAINT status_known,
    ADD CONSTRAINT status_known CHECK (
        status IN ('COMPLETE', 'INCOMPLETE', 'ABANDONED', 'RUNNING')
    ),
    DROP CONSTRAINT duration_within_bounds,
    ADD CONSTRAINT duration_within_bounds CHECK (
        0 <= duration_ms AND duration_ms <= ended_ms - started_ms
        AND (
            upper_bound_ms IS NULL
            OR (duration_ms <= upper_bound_ms AND upper_bound_ms <= ended_ms - started_ms)
        )
    ),
    ADD CONSTRAINT unknown_bound_has_a_reason CHECK (
        upper_bound_ms IS NOT NULL OR end_number IS NULL
        OR coalesce(missing_numbers -> 0 ->> 'first' = '1', false)
    ),
    DROP CONSTRAINT complete_means_complete,
    ADD CONSTRAINT complete_means_complete CHECK (
        status <> 'COMPLETE' OR (
            upper_bound_ms IS NOT DISTINCT FROM duration_ms
            AND end_number IS NOT NULL AND missing_numbers = '[]'
        )
    );

ALTER TABLE set_aside_totals
    ALTER COLUMN upper_bound_ms DROP NOT NULL,
    ADD COLUMN gap_ms bigint NOT NULL GENERATED ALWAYS AS (ended_ms - started_ms - duration_ms) STORED,
    DROP CONSTRAINT status_known,
    ADD CONSTRAINT status_known CHECK (
        status IN ('COMPLETE', 'INCOMPLETE', 'ABANDONED', 'RUNNING')
    ),
    DROP CONSTRAINT duration_within_bounds,
    ADD CONSTRAINT duration_within_bounds CHECK (
        0 <= duration_ms AND duration_ms <= ended_ms - started_ms
        AND (
            upper_bound_ms IS NULL
            OR (duration_ms <= upper_bound_ms AND upper_bound_ms <= ended_ms - started_ms)
        )
    ),
    ADD CONSTRAINT unknown_bound_has_a_reason CHECK (
        upper_bound_ms IS NOT NULL OR end_number IS NULL
        OR coalesce(missing_numbers -> 0 ->> 'first' = '1', false)
    ),
    DROP CONSTRAINT complete_means_complete,
    ADD CONSTRAINT complete_means_complete CHECK (
        status <> 'COMPLETE' OR (
            upper_bound_ms IS NOT DISTINCT FROM duration_ms
            AND end_number IS NOT NULL AND missing_numbers = '[]'
        )
    );

COMMENT ON COLUMN order_totals.upper_bound_ms IS
    'At most this if all that is missing were found. NULL: unknown, the first number or the end is missing.';
COMMENT ON COLUMN order_totals.gap_ms IS
    'Between started_ms and ended_ms, but in no segment. Of a COMPLETE order: somebody should look.';

-- The same as before, with the new column.
CREATE OR REPLACE VIEW latest_order_totals AS
    SELECT DISTINCT ON (service_order_number) *
    FROM order_totals
    ORDER BY service_order_number DESC, revision DESC;

-- One row a status, also where no order has it. A sum of bounds is unknown (NULL) where one of them
-- is. Interim totals are no corrections.
CREATE OR REPLACE VIEW ledger_status AS
    SELECT
        known.status,
        count(latest.service_order_number) AS orders,
        coalesce(sum(latest.duration_ms), 0) AS duration_ms,
        CASE
            WHEN count(latest.service_order_number) = count(latest.upper_bound_ms)
            THEN coalesce(sum(latest.upper_bound_ms), 0)
        END AS upper_bound_ms,
        coalesce(sum(greatest(given.settlements - 1, 0)), 0)::bigint AS corrections,
        count(latest.service_order_number) - count(latest.upper_bound_ms) AS unknown_bounds,
        coalesce(sum(latest.gap_ms), 0) AS gap_ms,
        coalesce(sum(latest.numbers_after_end), 0) AS numbers_after_end
    FROM (VALUES ('COMPLETE'), ('INCOMPLETE'), ('ABANDONED'), ('RUNNING')) AS known (status)
    LEFT JOIN latest_order_totals AS latest USING (status)
    LEFT JOIN (
        SELECT service_order_number, count(*) FILTER (WHERE status <> 'RUNNING') AS settlements
        FROM order_totals GROUP BY service_order_number
    ) AS given USING (service_order_number)
    GROUP BY known.status;
