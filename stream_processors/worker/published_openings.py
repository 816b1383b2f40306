"""The openings that owners before us have published, of records that a replay has yet to bring.

An opening is published with headers that say in which log it lies, and at which offset. So a
recovery can tell by the orders topic alone what the replay will give once more, and suppresses it
then.

What isn't a worker's is passed over: a record that doesn't say where it lies, and with a checkpoint
one in a partition where its order doesn't live. But where another opening than the log's stands in
its place, by a record of the form of a worker's, the log may have lost records, and what rests on
them is billed: so that stops the worker, as another total does (`PartitionTask`).

The topic may also have openings of a log before ours: the segments topic was recreated, and its
offsets have begun anew. What was published of the same bytes at the same offset counts as ours,
whatever log it names: the topic may have been restored. Everything else of other logs is ignored,
and so is what names none, as records of workers before this header do.
"""

from collections.abc import Iterable
from itertools import takewhile

from durabill.schemas.errors import NEW_RESULTS, StateError
from durabill.schemas.text import shown
from durabill.stream_processors.engine.effects import Opening
from durabill.stream_processors.engine.table import Place
from durabill.stream_processors.worker.ports import PublishedOpening
from durabill.stream_processors.worker.strays import is_misplaced


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
        *,
        has_checkpoint: bool = False,
    ) -> None:
        self._place = place
        self._topic_id = topic_id
        self.strays: list[int] = []
        """The offsets of records that belong in another partition: no worker's."""
        waiting: dict[int, tuple[PublishedOpening, ...]] = {}
        for each in found:
            is_ours = topic_id in ("", each.topic_id) or not each.topic_id
            if is_ours and is_misplaced(
                "orders", each.key, each.offset, place, has_checkpoint=has_checkpoint
            ):
                self.strays.append(each.offset)
                continue
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
                " orders topic. Either the log has lost records (restore them), or somebody else"
                f" has written that one ({NEW_RESULTS['orders']}), or Durabill is wrong (report"
                " it). `durabill audit` tells what differs"
            )
        return False
