"""By what the leftovers of one partition's totals are judged."""

from collections.abc import Callable
from dataclasses import dataclass

from durabill.schemas import OrderTotal
from durabill.schemas.limits import FUTURE_TOLERANCE_MS
from durabill.stream_processors.audit.partition_job import PartitionJob
from durabill.stream_processors.audit.replay import LogSource
from durabill.stream_processors.audit.totals_log import Published

NOTHING_PROVABLE_MS = 2**62


@dataclass(frozen=True, slots=True)
class Grounds:
    """What a partition's leftovers are judged by.

    `was_given` tells whether workers have published a total, by their checkpoint. Totals of orders
    that may have begun before `provable_from_ms`, or that rest on records before
    `provable_from_offset`, can't be recomputed.
    """

    topic: str
    partition: int
    partitions: int
    end_offset: int
    """Where the segments end that were folded."""
    clock_ms: int
    """The partition's clock there."""
    totals_end: int
    """Records of the totals from here on may rest on more of the log than was folded."""
    may_all_be_newer: bool
    """Whether this holds of all records: the segments were folded to an earlier end."""
    was_given: Callable[[OrderTotal], bool]
    provable_from_ms: int = 0
    provable_from_offset: int = 0
    log_id: str = ""
    """The log's own id, "" where it has none."""
    own_from: int | None = None
    """Where the first total is that names it: behind that no worker names another one."""

    def is_of_before(self, record: Published) -> bool:
        """Tell whether a record is of a log before ours, by the id that it names."""
        is_of_another = record.log_id and self.log_id not in ("", record.log_id)
        return bool(is_of_another) and (self.own_from is None or record.offset < self.own_from)


def grounds_of(
    job: PartitionJob,
    source: LogSource,
    *,
    head_ms: int | None,
    has_holes: bool,
    clock_ms: int,
    was_given: Callable[[OrderTotal], bool],
    own_from: int | None,
) -> Grounds:
    """Return by what leftovers are judged.

    `head_ms` is when the first record was appended that is there without a hole after it.
    """
    provable_from_ms = 0
    if source.first_offset > 0 or has_holes:
        # A record arrives at most so much before its segment's end.
        provable_from_ms = NOTHING_PROVABLE_MS
        if head_ms is not None:
            provable_from_ms = head_ms + FUTURE_TOLERANCE_MS + 1
    begins = job.terms.history[0].from_offset
    is_late = not job.terms.assumed_because and begins > source.first_offset
    return Grounds(
        topic=job.settings.totals_topic,
        partition=job.place.partition,
        partitions=job.place.partitions,
        end_offset=source.end_offset,
        clock_ms=clock_ms,
        totals_end=job.totals_end,
        may_all_be_newer=job.is_as_of,
        was_given=was_given,
        provable_from_ms=provable_from_ms,
        provable_from_offset=begins if is_late else 0,
        log_id=job.log_id,
        own_from=own_from,
    )
