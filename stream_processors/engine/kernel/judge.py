"""What becomes of a record by itself, before its order is looked at."""

from typing import Any

from durabill.stream_processors.engine.kernel import hot
from durabill.stream_processors.engine.kernel.parse import (
    BEGIN,
    END,
    IS_END,
    KEY_AT,
    KEY_SIZE,
    NUMBER,
    SENT_ON,
    is_plain_text,
    is_unreadable,
    parse_segment,
    partition_of,
)
from durabill.stream_processors.engine.kernel.rows import CHANGED, NO_ROOM, NUMBER_MAX, REJECTED
from durabill.stream_processors.engine.kernel.tasks import (
    CORRECTION_WINDOW,
    FUTURE_TOLERANCE,
    LENGTH_MAX,
    NOW,
    OTHERS,
    PARTITION,
    PARTITIONS,
    REGISTRY,
)


@hot
def is_acceptable(record: Any, task: Any) -> bool:
    """Tell whether a segment breaks none of the rules that need no order; False: look closer."""
    start, end, now = record[BEGIN], record[END], task[NOW]
    return (
        1 <= record[NUMBER] <= NUMBER_MAX
        and 0 <= start <= end
        and (start < end or record[IS_END] == 1)
        and end <= now + task[FUTURE_TOLERANCE]
        and end - start <= task[LENGTH_MAX]
        and end >= now - task[CORRECTION_WINDOW]
    )


@hot
def judge(data: Any, header: Any, record: Any, task: Any) -> int:
    """Judge a record by itself: CHANGED if it is to be applied, NO_ROOM to be looked at.

    REJECTED if it will certainly be a dead letter: the plain core says why, and as it changes
    nothing about the order, the order's next records need not wait for that.
    """
    if parse_segment(data, header, record):
        if is_acceptable(record, task):
            return CHANGED
        return NO_ROOM if record[NUMBER] > NUMBER_MAX else REJECTED
    return (
        REJECTED if is_unreadable(data, header, record, task[OTHERS], task[REGISTRY]) else NO_ROOM
    )


@hot
def is_new_order(data: Any, header: Any, record: Any, task: Any) -> bool:
    """Tell whether a record of an unknown order can start a row."""
    key_at, key_size = record[KEY_AT], record[KEY_SIZE]
    return (
        record[SENT_ON] == 0
        and parse_segment(data, header, record)
        and is_acceptable(record, task)
        and is_plain_text(data, key_at, key_size)
        and partition_of(data, key_at, key_size, task[PARTITIONS]) == task[PARTITION]
    )
