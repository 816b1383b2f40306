"""Records at the edge of a rule, on either side, and those that break several rules at once."""

from durabill.schemas import SEGMENT_HEADER
from durabill.schemas.order_opened import OrderOpened
from durabill.schemas.wire import zigzag
from tests.vectors.cases import DAY_MS, Case, raw_opening, raw_segment, raw_text
from tests.vectors.orders import T0_MS

_KEY = b"SO1"
_END_MS = T0_MS + 10
_DECADE_MS = 315_360_000_000
_FINE = raw_segment(_KEY, 1, T0_MS, _END_MS)
_HEAD = SEGMENT_HEADER + raw_text(_KEY)
_TIMES = _FINE[len(_HEAD) + 1 :]


def _of(order: str) -> tuple[bytes, bytes]:
    """Return key and value of a segment that is fine but for its order number."""
    return order.encode(), raw_segment(order.encode(), 1, T0_MS, _END_MS)


def segments_that_count() -> list[Case]:
    """Segments that no rule forbids, however odd they look."""
    long_ago = raw_segment(_KEY, 1, T0_MS - DAY_MS - 9, T0_MS - DAY_MS)
    return [
        ("an end 60,000 ms after the arrival", _KEY, raw_segment(_KEY, 1, T0_MS, T0_MS + 60_000)),
        ("an end a window before the arrival", _KEY, long_ago),
        ("ten bytes for a 1", _KEY, _HEAD + b"\x82" + b"\x80" * 8 + b"\x00" + _TIMES),
        ("an order number of 64 bytes, 32 characters", *_of("ü" * 32)),
        ("U+00A0 in the order number", *_of("a\u00a0b")),
    ]


def segments_that_do_not() -> list[Case]:
    """Segments that are just over an edge, or break several rules: the first of them tells."""
    far = T0_MS + 2 * DAY_MS
    return [
        ("a long of 65 bits", _KEY, _HEAD + b"\x80" * 9 + b"\x02" + _TIMES),
        ("a string of -1 bytes", _KEY, SEGMENT_HEADER + zigzag(-1) + _TIMES),
        ("the marker and eight more bytes", None, b"\xc3\x01" + b"\x00" * 8),
        ("half a marker", _KEY, b"\xc3\x00" + _FINE[2:]),
        ("an order number of 66 bytes, 33 characters", *_of("ü" * 33)),
        ("U+007F in the order number", *_of("\x7f")),
        ("U+009F in the order number", *_of("\x9f")),
        ("no key, and a body that is cut off", None, _FINE[:-1]),
        ("another key, and an empty order number", _KEY, raw_segment(b"", 1, T0_MS, _END_MS)),
        ("number 0, and an end before the start", _KEY, raw_segment(_KEY, 0, _END_MS, T0_MS)),
        ("in the future, and too long", _KEY, raw_segment(_KEY, 1, T0_MS, far)),
        ("too long, and too late", _KEY, raw_segment(_KEY, 1, 0, T0_MS - 2 * DAY_MS)),
    ]


_OPENING = OrderOpened("SO1", "acme", "", "", (), T0_MS, 10_000, T0_MS + DAY_MS)


def _blocks(*blocks: tuple[int, bytes]) -> bytes:
    return b"".join(zigzag(count) + pairs for count, pairs in blocks) + zigzag(0)


def _pairs(count: int, first: int = 0) -> bytes:
    """Return so many attributes, a byte for each key and value: 4 bytes a pair."""
    return b"".join(b"\x02%c\x02x" % (65 + first + at) for at in range(count))


def _opening(opened: OrderOpened, attributes: bytes | None = None) -> tuple[bytes, bytes]:
    return opened.service_order_number.encode(), raw_opening(opened, attributes)


def openings_that_count() -> list[Case]:
    """Openings that no rule forbids."""
    future_ms = T0_MS + 60_000
    return [
        ("sixteen attributes", *_opening(_OPENING, _blocks((16, _pairs(16))))),
        (
            "attributes in two blocks, one told with its size",
            *_opening(_OPENING, _blocks((2, _pairs(2)), (-3, zigzag(12) + _pairs(3, 2)))),
        ),
        (
            "texts of the greatest length",
            *_opening(
                _OPENING._replace(
                    tenant="a" * 64,
                    client="ü" * 32,
                    service="s" * 64,
                    attributes=(("k" * 64, "v" * 256),),
                )
            ),
        ),
        ("a report interval of a day", *_opening(_OPENING._replace(report_interval_ms=DAY_MS))),
        (
            "a begin 60,000 ms after the arrival",
            *_opening(_OPENING._replace(server_timestamp_ms=future_ms)),
        ),
        (
            "accepted for ten years",
            *_opening(_OPENING._replace(accept_until_ms=T0_MS + _DECADE_MS)),
        ),
        ("accepted until its arrival", *_opening(_OPENING._replace(accept_until_ms=T0_MS))),
    ]


def openings_that_do_not() -> list[Case]:
    """Openings that are just over an edge, or break several rules: the first of them tells."""
    future_ms = T0_MS + 60_001
    far_ms = T0_MS + 2 * _DECADE_MS
    wrong = {
        "a tenant of 65 characters": _OPENING._replace(tenant="a" * 65),
        "a client of 65 bytes": _OPENING._replace(client="c" * 65),
        "a line feed in the service": _OPENING._replace(service="a\nb"),
        "an attribute's key of 65 bytes": _OPENING._replace(attributes=(("k" * 65, ""),)),
        "an attribute's value of 257 bytes": _OPENING._replace(attributes=(("k", "v" * 257),)),
        "a report interval of a day and 1 ms": _OPENING._replace(report_interval_ms=DAY_MS + 1),
        "a begin before the epoch": _OPENING._replace(server_timestamp_ms=-1),
        "a begin 60,001 ms after the arrival": _OPENING._replace(server_timestamp_ms=future_ms),
        "accepted for ten years and 1 ms": _OPENING._replace(
            accept_until_ms=T0_MS + _DECADE_MS + 1
        ),
        "accepted until 1 ms before its arrival": _OPENING._replace(
            server_timestamp_ms=T0_MS - DAY_MS, accept_until_ms=T0_MS - 1
        ),
        "in the future, and too long": _OPENING._replace(
            server_timestamp_ms=future_ms, accept_until_ms=far_ms
        ),
    }
    return [
        ("seventeen attributes", *_opening(_OPENING, _blocks((9, _pairs(9)), (8, _pairs(8, 9))))),
        ("an attribute twice", *_opening(_OPENING, _blocks((1, _pairs(1)), (1, _pairs(1))))),
        *((what, *_opening(each)) for what, each in wrong.items()),
    ]
