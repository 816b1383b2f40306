"""What an opening changes about its order.

An opening is a record that comes ahead of its order's segments (`schemas.order_opened`). The first
one of a number that is not known opens it; `admission` decides. From then on, for this life of the
number:

    a segment that begins before the opening's server timestamp   is refused: BEFORE_OPENING
    a segment older than the correction window                    is taken until `accept_until_ms`
    the settled order                                             is known until then and 60 s more

An opening waits for its order's first segment. If none comes, it is forgotten as a settled order
would be, and gives no total. Once its order has begun, the order has it for the rest of its life.

The same client's opening of a number that is known changes one thing alone: where it accepts
segments for longer, `accept_until_ms` is the later one from then on. It *extends* the opening,
whether that waits, or its order runs or has settled; it can't shorten it. So a lease that is
renewed keeps its order's segments from being too late.

Theory. A record has to be judged by the extensions before it alone, also where a replay brings it
to a state that is ahead of it. No list of them is needed for that, so nothing grows with their
number, however often somebody renews. A state keeps the offset of the last one that it has taken
in, `extended_at`. What it was before is asked for by nobody: all records of the number up to that
offset have been judged by then, as those up to an order's last segment have, and a replay passes
over both. A segment that counts stands behind all extensions that its order has taken in, and says
as much as they do. From then on `extended_at` is -1 again.
"""

from typing import NamedTuple

from durabill.schemas import OrderOpened
from durabill.schemas.limits import FUTURE_TOLERANCE_MS


class Opened(NamedTuple):
    """What an order keeps of its opening, whose record stands at `offset`."""

    begin_ms: int
    """No segment begins earlier."""

    accept_until_ms: int
    """No segment that arrives by then is too late."""

    offset: int
    tenant: str
    client: str
    extended_at: int = -1
    """The offset of the record that extended it last; -1: none, or the order has a segment since.
    """

    @classmethod
    def by(cls, record: OrderOpened, offset: int) -> "Opened":
        """Return what is kept of the opening at an offset."""
        until_ms = record.accept_until_ms
        return cls(record.server_timestamp_ms, until_ms, offset, record.tenant, record.client)

    @property
    def known_until_ms(self) -> int:
        """Return the last instant at which the order may have to be known because of it."""
        return self.accept_until_ms + FUTURE_TOLERANCE_MS

    def is_forgotten(self, now_ms: int) -> bool:
        """Tell whether an opening whose order has not begun counts as unknown."""
        return now_ms > self.known_until_ms

    @property
    def last_offset(self) -> int:
        """Return up to which offset a state that has it has taken in what there is of its number.

        From the opening on, that is: an earlier record may be of a life before.
        """
        return max(self.offset, self.extended_at)

    def is_longer(self, record: OrderOpened) -> bool:
        """Tell whether the same client's opening would extend this one."""
        return record.accept_until_ms > self.accept_until_ms

    def extended_by(self, record: OrderOpened, offset: int) -> "Opened":
        """Return what is kept from the record at `offset` on, which extends it."""
        assert self.is_longer(record)
        assert offset > self.last_offset
        return self._replace(accept_until_ms=record.accept_until_ms, extended_at=offset)

    def is_of(self, record: OrderOpened) -> bool:
        """Tell whether an opening is the same client's, so that it comes again or extends it."""
        return (self.tenant, self.client) == (record.tenant, record.client)
