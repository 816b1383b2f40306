"""What becomes of a record by itself, before its order is looked at: accepted, refused, forwarded.

`kernel.judge` has the same rules for what the kernel reads.
"""

from dataclasses import dataclass

from durabill.schemas import BadRecord, Reason, SegmentEvent, WriterSchemas, limits, to_segment
from durabill.schemas.headers import FORWARDED_FROM
from durabill.schemas.limits import FUTURE_TOLERANCE_MS, SEGMENT_LENGTH_MAX_MS
from durabill.stream_processors.core.order import Policy
from durabill.stream_processors.engine.batch import Headers, Record
from durabill.stream_processors.engine.effects import Effects, Forward, dead_letter


@dataclass(frozen=True, slots=True)
class Place:
    """Which partition of how many a table is for."""

    partition: int
    partitions: int

    def __post_init__(self) -> None:
        assert 0 <= self.partition < self.partitions


def accept(record: Record, clock_ms: int, policy: Policy, writers: WriterSchemas) -> SegmentEvent:
    """Return the record's segment, or raise BadRecord for the first rule that it breaks."""
    raw = writers.read(record.value, record.offset)
    if record.key != raw[0]:
        raise BadRecord(Reason.KEY_MISMATCH, f"the key is {record.key!r}, not {raw[0]!r}")
    segment = to_segment(raw)
    length_ms = segment.end_ms - segment.start_ms
    ahead_ms = segment.end_ms - clock_ms
    if ahead_ms > FUTURE_TOLERANCE_MS:
        raise BadRecord(Reason.IN_THE_FUTURE, f"ends {ahead_ms} ms after its arrival")
    if length_ms > SEGMENT_LENGTH_MAX_MS:
        raise BadRecord(Reason.TOO_LONG, f"{length_ms} ms, {SEGMENT_LENGTH_MAX_MS} are allowed")
    if -ahead_ms > policy.correction_window_ms:
        raise BadRecord(Reason.TOO_LATE, f"ended {-ahead_ms} ms before its arrival")
    return segment


def forward(record: Record, place: Place, partition: int, effects: Effects) -> None:
    """Forward a record to the `partition` that it belongs in; once, and only if it fits."""
    if any(name == FORWARDED_FROM for name, _ in record.headers):
        problem = "has been sent on before"
    elif record.size > limits.FORWARD_BYTES_MAX:
        problem = f"is too large to be sent on: {record.size} bytes"
    else:
        source = f"{place.partition}/{record.offset}".encode()
        headers = (*record.headers, (FORWARDED_FROM, source))
        effects.forwards.append(Forward(record, partition, headers))
        return
    detail = f"belongs in partition {partition} and {problem}"
    effects.dead_letters.append(dead_letter(record, Reason.WRONG_PARTITION, detail))


def source_of(headers: Headers, place: Place) -> tuple[int, int] | None:
    """Return the (partition, offset) that a record was forwarded from; None if it was not.

    Anybody can write this header. One that names no other partition of the topic doesn't count.
    What doesn't fit 64 bits must not reach a checkpoint.
    """
    for name, content in headers:
        if name == FORWARDED_FROM and content is not None:
            partition, _, offset = content.partition(b"/")
            sizes_fit = len(partition) <= 9 and len(offset) <= 18
            is_sound = partition.isdigit() and offset.isdigit() and sizes_fit
            if is_sound and place.partition != int(partition) < place.partitions:
                return int(partition), int(offset)
    return None
