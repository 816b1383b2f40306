"""Records as their bytes, however wrong they are, and what becomes of each by itself."""

from collections.abc import Sequence
from typing import Any

from durabill.schemas import SEGMENT_HEADER
from durabill.schemas.order_opened import OPENING_HEADER, OrderOpened
from durabill.schemas.wire import zigzag
from durabill.stream_processors.core.admission import Place
from durabill.stream_processors.core.order import Policy
from tests.vectors.orders import T0_MS, fold_one

DAY_MS = 86_400_000
COUNTS = "COUNTS"
"""The verdict on a record that is no dead letter; else it is the reason."""

Case = tuple[str, bytes | None, bytes | None]
"""What is to be seen by it, key, value."""


def hexed(content: bytes | None) -> str | None:
    """Return bytes as hex, None as None."""
    return None if content is None else content.hex()


def raw_segment(order: bytes, number: int, start_ms: int, end_ms: int, end: int = 0) -> bytes:
    """Return a segment's value, however wrong it is."""
    body = zigzag(len(order)) + order + zigzag(number) + zigzag(start_ms) + zigzag(end_ms)
    return SEGMENT_HEADER + body + bytes([end])


def raw_text(content: str | bytes) -> bytes:
    """Return a string as Avro has it."""
    encoded = content.encode() if isinstance(content, str) else content
    return zigzag(len(encoded)) + encoded


def raw_opening(opened: OrderOpened, attributes: bytes | None = None) -> bytes:
    """Return an opening's value, however wrong it is; `attributes` is the map in other blocks."""
    texts = opened.service_order_number, opened.tenant, opened.client, opened.service
    out = OPENING_HEADER + b"".join(map(raw_text, texts))
    if attributes is None:
        pairs = b"".join(raw_text(each) for pair in opened.attributes for each in pair)
        attributes = (zigzag(len(opened.attributes)) + pairs if pairs else b"") + zigzag(0)
    times_ms = opened.server_timestamp_ms, opened.report_interval_ms, opened.accept_until_ms
    return out + attributes + b"".join(map(zigzag, times_ms))


def judged(cases: Sequence[Case], *, counts: bool = False) -> list[dict[str, Any]]:
    """Say what becomes of each record where it arrives at T0; all of them count, or none does."""
    place, policy = Place(0, 1), Policy(correction_window_ms=DAY_MS)
    out = []
    for what, key, value in cases:
        effects = fold_one(place, policy, T0_MS, key, value)
        reasons = [each.reason.value for each in effects.dead_letters] or [COUNTS]
        assert (reasons == [COUNTS]) is counts, (what, reasons)
        out.append(
            {
                "what": what,
                "arrival_ms": T0_MS,
                "correction_window_ms": DAY_MS,
                "key_hex": hexed(key),
                "value_hex": hexed(value),
                "verdict": reasons[0],
            }
        )
    return out
