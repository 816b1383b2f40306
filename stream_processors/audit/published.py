"""What a partition's workers have published, by their own checkpoint.

A checkpoint is written after all that it rests on has been published. So a total that its orders
know of is in the topic, or was removed from it; one that they don't know of may be yet to come.
"""

from dataclasses import dataclass

from durabill.schemas import OWN_SCHEMA_ONLY, OrderTotal
from durabill.schemas.errors import AccessError
from durabill.stream_processors.audit.terms import read_entries
from durabill.stream_processors.core.admission import Place
from durabill.stream_processors.core.order import Policy
from durabill.stream_processors.engine.checkpoint import blocks_in, meta_in
from durabill.stream_processors.engine.columns import ColumnTable
from durabill.stream_processors.settings import Settings


@dataclass(frozen=True, slots=True)
class CheckpointView:
    """One partition's checkpoint: its orders, and the offset up to which it knows the log."""

    table: ColumnTable
    next_offset: int

    def was_given(self, total: OrderTotal) -> bool:
        """Tell whether the checkpoint rests on a total.

        An order that it doesn't know has been forgotten, or begins at its offset or later.
        """
        key = total.service_order_number.encode()
        known = self.table.age_of(key) or (self.next_offset, 0)
        return (total.source_offset, total.revision) <= known


def read_checkpoint(settings: Settings, place: Place) -> CheckpointView | None:
    """Return the partition's checkpoint as it is now, None where there is none to go by."""
    try:
        entries = read_entries(settings, settings.checkpoint_topic, {place.partition})
    except AccessError:
        return None  # no such topic: no worker of this application id has ever run
    meta = meta_in(entries, place.partition)
    if meta is None:
        return None
    table = ColumnTable(place, Policy(), OWN_SCHEMA_ONLY)
    table.restore(blocks_in(entries, place.partition), meta.clock_ms)
    return CheckpointView(table, meta.next_offset)
