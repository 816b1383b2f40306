"""Strays: records in the totals or the orders topic that are no worker's.

Workers alone should have the right to write there, and what looks like the results of others stops
a worker: of two applications one alone may publish. But what can't be a result stops no process. It
is passed over, counted and told, and the audit has a finding for it.
"""

import logging
from collections.abc import Sequence

from durabill.schemas import partition_for
from durabill.schemas.errors import NEW_RESULTS, StateError
from durabill.schemas.text import shown
from durabill.stream_processors.engine.table import Place

log = logging.getLogger("durabill.worker")


def tell_strays(where: str, offsets: Sequence[int]) -> None:
    """Say that a partition of a topic has strays at these offsets."""
    if offsets:
        log.error(
            "%s: records that are no worker's, %d of them, the first at offset %d. They are passed"
            " over, and nothing is published twice. Workers alone may have the right to write"
            " there: find out who else has it. `durabill audit` tells of each",
            where,
            len(offsets),
            offsets[0],
        )


def is_misplaced(what: str, key: bytes, offset: int, place: Place, *, has_checkpoint: bool) -> bool:
    """Tell whether a result of a topic is in a partition where its order doesn't live: a stray.

    Without a checkpoint, that has as many partitions, it may be from when the segments had another
    number of them, and its order would be billed again in its own: then it raises StateError.
    """
    if partition_for(key, place.partitions) == place.partition:
        return False
    if has_checkpoint:
        return True
    raise StateError(
        f"the {what} topic has order {shown(key.decode('utf-8', 'replace'))} in partition"
        f" {place.partition}, at offset {offset}, where it doesn't belong. Either it was filled"
        " while the segments had another number of partitions: use new topics for segments, totals"
        " and orders. Or somebody else has written that record (`durabill audit` finds no evidence"
        f" for it): {NEW_RESULTS[what]}"
    )
