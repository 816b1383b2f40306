"""The openings that owners before us have published, of records that a replay has yet to bring.

An opening is published with headers that say in which log it lies, and at which offset. So a
recovery can tell by the orders topic alone what the replay will give once more, and suppresses it
then.

The topic may also have openings of a log before ours: the segments topic was recreated, and its
offsets have begun anew. What was published of the same bytes at the same offset counts as ours,
whatever log it names: the topic may have been restored. Everything else of other logs is ignored,
and so is what names none, as records of workers before this header do.
"""

from collections.abc import Iterable
from itertools import takewhile

from durabill.schemas import partition_for
from durabill.schemas.errors import StateError
from durabill.schemas.text import shown
from durabill.stream_processors.engine.effects import Opening
from durabill.stream_processors.engine.table import Place
from durabill.stream_processors.worker.ports import PublishedOpening


class PublishedOpenings:
    """What a partition's orders topic has of offsets from `next_offset` on, of any log.

    `topic_id` is the segments topic's, "" where it isn't known.
    """

    def __init__(
        self,
        found: Iterable[PublishedOpening],
        place: Place,
        next_offset: int,
        topic_id: str = "",
    ) -> None:
        self._place = place
        self._topic_id = topic_id
        waiting: dict[int, tuple[PublishedOpening, ...]] = {}
        for each in found:
            is_ours = topic_id in ("", each.topic_id) or not each.topic_id
            if is_ours and partition_for(each.key, place.partitions) != place.partition:
                raise StateError(
                    f"the orders topic has order {shown(each.key.decode('utf-8', 'replace'))} in"
                    f" partition {place.partition}, where it doesn't belong: it was filled while"
                    " the segments had another number of partitions. Use new topics for segments,"
                    " totals and orders"
                )
            if each.source_offset >= next_offset:
                known = waiting.get(each.source_offset, ())
                waiting[each.source_offset] = (*known, each)
        self._waiting = {at: waiting[at] for at in sorted(waiting)}
        offsets = sorted(each.offset for known in waiting.values() for each in known)
        self._published_at = dict.fromkeys(offsets)
        """The places in the orders topic of all that waits, ascending."""

    def __len__(self) -> int:
        return len(self._waiting)

    def start(self, orders_end: int) -> int:
        """Return from where on the next recovery has to look, if the topic ends at `orders_end`.

        It must also find the openings that our own replay has yet to repeat.
        """
        return min(orders_end, next(iter(self._published_at), orders_end))

    def pass_over(self, next_offset: int) -> None:
        """Forget what lies before the offset that the replay has come to.

        A block of the checkpoint may be ahead of it: the replay doesn't give its openings again.
        """
        for each in list(takewhile(lambda offset: offset < next_offset, self._waiting)):
            self._take(each)

    def not_among(self, openings: list[Opening]) -> list[Opening]:
        """Return the openings without those that are published already.

        Raises StateError where another one of our log was published in the place of one of them.
        """
        return [each for each in openings if not self._was_published(each)]

    def _take(self, source_offset: int) -> tuple[PublishedOpening, ...]:
        known = self._waiting.pop(source_offset, ())
        for each in known:
            del self._published_at[each.offset]
        return known

    def _was_published(self, opening: Opening) -> bool:
        known = self._take(opening.offset)
        if any((each.key, each.value) == (opening.key, opening.value) for each in known):
            return True
        ours = [each for each in known if each.topic_id and each.topic_id == self._topic_id]
        if ours:
            number = shown(opening.key.decode("utf-8", "replace"))
            raise StateError(
                f"order {number}: the log has another opening at offset {opening.offset} than the"
                f" one at offset {ours[0].offset} of partition {self._place.partition} of the"
                " orders topic. Either the log has lost records (restore them), or Durabill is"
                " wrong (report it)"
            )
        return False
