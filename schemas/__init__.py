"""The contract: Avro schemas, frozen values, wire forms, the partitioner, the topics' names.

Each name is imported when it is first used: who sends segments as JSON needs no Avro.
"""

from typing import TYPE_CHECKING

from durabill.schemas.lazy import lazy_names

if TYPE_CHECKING:
    from durabill.schemas.clock_mark import (
        CLOCK_MARK_HEADER,
        CLOCK_MARK_SCHEMA,
        ClockMark,
        encode_clock_mark,
        is_clock_mark,
        read_clock_mark,
    )
    from durabill.schemas.codec import (
        OWN_SCHEMA_ONLY,
        SEGMENT_HEADER,
        SEGMENT_SCHEMA,
        TOTAL_HEADER,
        TOTAL_SCHEMA,
        TOTAL_SCHEMA_V1,
        WriterSchemas,
        decode_segment,
        decode_total,
        encode_segment,
        encode_total,
        schema_fingerprint,
        to_segment,
        total_record,
        total_revision,
    )
    from durabill.schemas.errors import BadRecord, BadTotal, Reason
    from durabill.schemas.order_opened import (
        DEFAULT_TENANT,
        OPENING_HEADER,
        OPENING_SCHEMA,
        OrderOpened,
        encode_opening,
        is_opening,
        read_opening,
    )
    from durabill.schemas.partitioner import PARTITIONER, partition_for
    from durabill.schemas.records import (
        Interval,
        NumberRange,
        OrderTotal,
        SegmentEvent,
        Status,
        check_order_number,
    )
    from durabill.schemas.topics import DEAD_LETTERS_TOPIC, SEGMENTS_TOPIC, TOTALS_TOPIC

__all__ = [
    "CLOCK_MARK_HEADER",
    "CLOCK_MARK_SCHEMA",
    "DEAD_LETTERS_TOPIC",
    "DEFAULT_TENANT",
    "OPENING_HEADER",
    "OPENING_SCHEMA",
    "OWN_SCHEMA_ONLY",
    "PARTITIONER",
    "SEGMENTS_TOPIC",
    "SEGMENT_HEADER",
    "SEGMENT_SCHEMA",
    "TOTALS_TOPIC",
    "TOTAL_HEADER",
    "TOTAL_SCHEMA",
    "TOTAL_SCHEMA_V1",
    "BadRecord",
    "BadTotal",
    "ClockMark",
    "Interval",
    "NumberRange",
    "OrderOpened",
    "OrderTotal",
    "Reason",
    "SegmentEvent",
    "Status",
    "WriterSchemas",
    "check_order_number",
    "decode_segment",
    "decode_total",
    "encode_clock_mark",
    "encode_opening",
    "encode_segment",
    "encode_total",
    "is_clock_mark",
    "is_opening",
    "partition_for",
    "read_clock_mark",
    "read_opening",
    "schema_fingerprint",
    "to_segment",
    "total_record",
    "total_revision",
]

_MODULES = {
    "clock_mark": (
        "CLOCK_MARK_HEADER",
        "CLOCK_MARK_SCHEMA",
        "ClockMark",
        "encode_clock_mark",
        "is_clock_mark",
        "read_clock_mark",
    ),
    "codec": (
        "OWN_SCHEMA_ONLY",
        "SEGMENT_HEADER",
        "SEGMENT_SCHEMA",
        "TOTAL_HEADER",
        "TOTAL_SCHEMA",
        "TOTAL_SCHEMA_V1",
        "WriterSchemas",
        "decode_segment",
        "decode_total",
        "encode_segment",
        "encode_total",
        "schema_fingerprint",
        "to_segment",
        "total_record",
        "total_revision",
    ),
    "errors": ("BadRecord", "BadTotal", "Reason"),
    "order_opened": (
        "DEFAULT_TENANT",
        "OPENING_HEADER",
        "OPENING_SCHEMA",
        "OrderOpened",
        "encode_opening",
        "is_opening",
        "read_opening",
    ),
    "partitioner": ("PARTITIONER", "partition_for"),
    "records": (
        "Interval",
        "NumberRange",
        "OrderTotal",
        "SegmentEvent",
        "Status",
        "check_order_number",
    ),
    "topics": ("DEAD_LETTERS_TOPIC", "SEGMENTS_TOPIC", "TOTALS_TOPIC"),
}

if not TYPE_CHECKING:
    __getattr__, __dir__ = lazy_names(__name__, _MODULES)
