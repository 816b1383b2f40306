-- What finance reads.

-- The greatest revision of each order. Sorted both ways down so that the primary key serves it.
CREATE VIEW latest_order_totals AS
    SELECT DISTINCT ON (service_order_number) *
    FROM order_totals
    ORDER BY service_order_number DESC, revision DESC;

-- One row a status, also where no order has it.
CREATE VIEW ledger_status AS
    SELECT
        known.status,
        count(latest.service_order_number) AS orders,
        coalesce(sum(latest.duration_ms), 0) AS duration_ms,
        coalesce(sum(latest.upper_bound_ms), 0) AS upper_bound_ms,
        coalesce(sum(latest.revision - 1), 0) AS corrections
    FROM (VALUES ('COMPLETE'), ('INCOMPLETE'), ('ABANDONED')) AS known (status)
    LEFT JOIN latest_order_totals AS latest USING (status)
    GROUP BY known.status;

-- Each total that was set aside beside the one that stands.
CREATE VIEW disputed_totals AS
    SELECT
        aside.service_order_number,
        aside.revision,
        recorded.status AS recorded_status,
        aside.status AS set_aside_status,
        recorded.duration_ms AS recorded_duration_ms,
        aside.duration_ms AS set_aside_duration_ms,
        recorded.digest AS recorded_digest,
        aside.digest AS set_aside_digest,
        aside.totals_topic,
        aside.totals_partition,
        recorded.totals_offset AS recorded_totals_offset,
        aside.totals_offset AS set_aside_totals_offset,
        aside.recorded_at AS set_aside_at
    FROM set_aside_totals AS aside
    JOIN order_totals AS recorded USING (service_order_number, revision);
