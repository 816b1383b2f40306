"""What becomes of a record by itself, before its order is looked at.

`core.admission` has the same rules for the plain core.
"""

from typing import Any

from durabill.stream_processors.engine.kernel import hot
from durabill.stream_processors.engine.kernel.parse import (
    END_MS,
    FORWARDED,
    IS_END,
    KEY_AT,
    KEY_SIZE,
    NUMBER,
    START_MS,
    is_plain_text,
    is_unreadable,
    parse_segment,
    partition_of,
)
from durabill.stream_processors.engine.kernel.rows import (
    CHANGED,
    LATE,
    NO_ROOM,
    NUMBER_MAX,
    REJECTED,
)
from durabill.stream_processors.engine.kernel.tasks import (
    CORRECTION_WINDOW_MS,
    FUTURE_TOLERANCE_MS,
    LENGTH_MAX_MS,
    NOW_MS,
    OTHERS,
    PARTITION,
    PARTITIONS,
    REGISTRY,
)


@hot
def is_acceptable(record: Any, task: Any) -> bool:
    """Tell whether a segment breaks none of the rules that need no order; False: look closer."""
    start_ms, end_ms, now_ms = record[START_MS], record[END_MS], task[NOW_MS]
    return (
        1 <= record[NUMBER] <= NUMBER_MAX
        and 0 <= start_ms <= end_ms
        and (start_ms < end_ms or record[IS_END] == 1)
        and end_ms <= now_ms + task[FUTURE_TOLERANCE_MS]
        and end_ms - start_ms <= task[LENGTH_MAX_MS]
    )


@hot
def is_late(record: Any, task: Any) -> bool:
    """Tell whether a segment is older than the correction window."""
    return record[END_MS] < task[NOW_MS] - task[CORRECTION_WINDOW_MS]


@hot
def judge(data: Any, header: Any, record: Any, task: Any) -> int:
    """Judge a record by itself: CHANGED if it is to be applied, NO_ROOM if it is deferred.

    REJECTED if it will certainly be a dead letter. The plain core says why, afterwards: the record
    changes nothing about its order, so the order's next records need not wait for it. LATE if it
    will be one unless its order was opened.
    """
    if parse_segment(data, header, record):
        if is_acceptable(record, task):
            return LATE if is_late(record, task) else CHANGED
        return NO_ROOM if record[NUMBER] > NUMBER_MAX else REJECTED
    return (
        REJECTED if is_unreadable(data, header, record, task[OTHERS], task[REGISTRY]) else NO_ROOM
    )


@hot
def is_new_order(data: Any, header: Any, record: Any, task: Any) -> bool:
    """Tell whether a record of an unknown order can start a row."""
    key_at, key_size = record[KEY_AT], record[KEY_SIZE]
    return (
        record[FORWARDED] == 0
        and parse_segment(data, header, record)
        and is_acceptable(record, task)
        and not is_late(record, task)
        and is_plain_text(data, key_at, key_size)
        and partition_of(data, key_at, key_size, task[PARTITIONS]) == task[PARTITION]
    )
