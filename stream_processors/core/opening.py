"""What an opening changes about its order.

An opening is a record that comes ahead of its order's segments (`schemas.order_opened`). The first
one of a number that is not known opens it; `admission` decides. From then on, for this life of the
number:

    a segment that begins before the opening's server timestamp   is refused: BEFORE_OPENING
    a segment older than the correction window                    is taken until `accept_until_ms`
    the settled order                                             is known until then and 60 s more

An opening waits for its order's first segment. If none comes, it is forgotten as a settled order
would be, and gives no total. Once its order has begun, the order has it for the rest of its life.
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

    def is_of(self, record: OrderOpened) -> bool:
        """Tell whether an opening is the same client's, so that it only comes again."""
        return (self.tenant, self.client) == (record.tenant, record.client)
