"""The openings that owners before us have published, of records that a replay has yet to bring.

An opening is published with a header that says at which offset of the log it lies. So a recovery
can tell by the orders topic alone what the replay will give once more, and suppresses it then.
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
    """What a partition's orders topic has of the log from `next_offset` on."""

    def __init__(self, found: Iterable[PublishedOpening], place: Place, next_offset: int) -> None:
        self._place = place
        self._waiting: dict[int, PublishedOpening] = {}
        for each in found:
            if partition_for(each.key, place.partitions) != place.partition:
                raise StateError(
                    f"the orders topic has order {shown(each.key.decode('utf-8', 'replace'))} in"
                    f" partition {place.partition}, where it doesn't belong: it was filled while"
                    " the segments had another number of partitions. Use new topics for both"
                )
            if each.source_offset >= next_offset:
                self._waiting.setdefault(each.source_offset, each)

    def __len__(self) -> int:
        return len(self._waiting)

    def start(self, orders_end: int) -> int:
        """Return from where on the next recovery has to look, if the topic ends at `orders_end`.

        It must also find the openings that our own replay has yet to repeat.
        """
        first = next(iter(self._waiting.values()), None)
        return orders_end if first is None else min(orders_end, first.offset)

    def pass_over(self, next_offset: int) -> None:
        """Forget what lies before the offset that the replay has come to.

        A block of the checkpoint may be ahead of it: the replay doesn't give its openings again.
        """
        for each in list(takewhile(lambda offset: offset < next_offset, self._waiting)):
            del self._waiting[each]

    def not_among(self, openings: list[Opening]) -> list[Opening]:
        """Return the openings without those that are published already.

        Raises StateError where another one was published in the place of one of them.
        """
        return [each for each in openings if not self._was_published(each)]

    def _was_published(self, opening: Opening) -> bool:
        known = self._waiting.pop(opening.offset, None)
        if known is None:
            return False
        if (known.key, known.value) != (opening.key, opening.value):
            number = shown(opening.key.decode("utf-8", "replace"))
            raise StateError(
                f"order {number}: the log has another opening at offset {opening.offset} than the"
                f" one at offset {known.offset} of partition {self._place.partition} of the orders"
                " topic. Either the log has lost records (restore them), or Durabill is wrong"
                " (report it)"
            )
        return True
