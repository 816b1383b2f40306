"""Openings: records that say whose an order is before its first segment comes.

An opening stands in the segments topic under its order's key, so that whatever it changes is a
function of the log: from when on the order's time may be, how late is too late, and whether the
order is taken at all where only opened ones are. `core.opening` has these rules.

Its value is an Avro `billing.OrderOpened` in single-object encoding. It is read strictly, like a
segment: what is longer than its limit, or follows the record, makes it none.
"""

import re
from typing import NamedTuple

from durabill.schemas.codec import HEADER_SIZE, MARKER, load_schema, schema_fingerprint
from durabill.schemas.errors import BadRecord, Reason
from durabill.schemas.limits import (
    ATTRIBUTE_KEY_BYTES_MAX,
    ATTRIBUTE_VALUE_BYTES_MAX,
    ATTRIBUTES_MAX,
    CLIENT_BYTES_MAX,
    LONG_MAX,
    OPENING_SPAN_MAX_MS,
    SEGMENT_LENGTH_MAX_MS,
    SERVICE_BYTES_MAX,
    TENANT_BYTES_MAX,
)
from durabill.schemas.records import check_order_number
from durabill.schemas.text import wrong_in
from durabill.schemas.wire import read_long, zigzag

OPENING_SCHEMA = load_schema("order_opened.avsc")
OPENING_HEADER = MARKER + schema_fingerprint(OPENING_SCHEMA)

DEFAULT_TENANT = "default"
"""The tenant where nobody is asked who he is."""

_TENANT = re.compile(r"[A-Za-z0-9._-]+", re.ASCII)


class OrderOpened(NamedTuple):
    """Whose an order is, when its time begins, and until when its segments may arrive.

    `attributes` are pairs, sorted by key, each key once. `accept_until_ms` is the latest arrival
    at which a segment is never too late.
    """

    service_order_number: str
    tenant: str
    client: str
    service: str
    attributes: tuple[tuple[str, str], ...]
    server_timestamp_ms: int
    report_interval_ms: int
    accept_until_ms: int


def is_opening(value: bytes | None) -> bool:
    """Tell whether a value claims to be an opening: whether it has the schema's fingerprint."""
    return value is not None and value.startswith(OPENING_HEADER)


def encode_opening(opened: OrderOpened) -> bytes:
    """Return the record value of an opening; the same opening always gives the same bytes.

    Raises BadRecord where a field is outside of its limits.
    """
    _check(opened)
    check_span(opened)
    texts = (opened.service_order_number, opened.tenant, opened.client, opened.service)
    out = [OPENING_HEADER, *map(_text, texts)]
    if opened.attributes:
        out.append(zigzag(len(opened.attributes)))
        out += [_text(each) for pair in sorted(opened.attributes) for each in pair]
    out.append(zigzag(0))
    out += map(
        zigzag, (opened.server_timestamp_ms, opened.report_interval_ms, opened.accept_until_ms)
    )
    return b"".join(out)


def read_opening(key: bytes | None, value: bytes) -> OrderOpened:
    """Return the opening in a record for which `is_opening` holds.

    Raises BadRecord: NOT_AVRO for a body that is none or has a text outside of its limits,
    KEY_MISMATCH, BAD_ORDER_NUMBER, BAD_TIME_SEQUENCE for times that can't be together.
    """
    body = _Body(value)
    number = body.raw()
    texts = [body.text(name) for name in ("tenant", "client", "service")]
    attributes = body.attributes()
    times_ms = [body.long() for _ in range(3)]
    if body.at != len(value):
        raise BadRecord(Reason.NOT_AVRO, f"{len(value) - body.at} bytes follow the record")
    if key != number:
        raise BadRecord(Reason.KEY_MISMATCH, f"the key is {key!r}, not {number!r}")
    try:
        name = number.decode()
    except UnicodeDecodeError as error:
        raise BadRecord(Reason.BAD_ORDER_NUMBER, "is no UTF-8") from error
    opened = OrderOpened(name, texts[0], texts[1], texts[2], attributes, *times_ms)
    _check(opened)
    return opened


class _Body:
    """Reads a body field by field; raises BadRecord(NOT_AVRO) where it ends early or is none."""

    def __init__(self, value: bytes) -> None:
        self._value = value
        self.at = HEADER_SIZE

    def long(self) -> int:
        """Read a number."""
        found, self.at = read_long(self._value, self.at)
        return found

    def raw(self) -> bytes:
        """Read a text's bytes."""
        size = self.long()
        if not 0 <= size <= len(self._value) - self.at:
            raise BadRecord(Reason.NOT_AVRO, "a text is longer than the record")
        self.at += size
        return self._value[self.at - size : self.at]

    def text(self, name: str) -> str:
        """Read a text."""
        try:
            return self.raw().decode()
        except UnicodeDecodeError as error:
            raise BadRecord(Reason.NOT_AVRO, f"the {name} is no UTF-8") from error

    def attributes(self) -> tuple[tuple[str, str], ...]:
        """Read the map, in blocks of either form that Avro has; return its pairs by key."""
        found: dict[str, str] = {}
        count = 0
        while block := self.long():
            if block < 0:
                self.long()  # the block's size in bytes, for those who pass over it
            count += abs(block)
            if count > ATTRIBUTES_MAX:
                raise BadRecord(Reason.NOT_AVRO, f"has more than {ATTRIBUTES_MAX} attributes")
            for _ in range(abs(block)):
                key = self.text("key of an attribute")
                found[key] = self.text("value of an attribute")
        if len(found) < count:
            raise BadRecord(Reason.NOT_AVRO, "has an attribute twice")
        return tuple(sorted(found.items()))


def _check(opened: OrderOpened) -> None:
    """Raise BadRecord for the first rule that an opening breaks by itself."""
    if not _TENANT.fullmatch(opened.tenant):
        raise BadRecord(Reason.NOT_AVRO, "the tenant is not of A-Z a-z 0-9 . _ -")
    _check_text("tenant", opened.tenant, TENANT_BYTES_MAX)
    _check_text("client", opened.client, CLIENT_BYTES_MAX)
    _check_text("service", opened.service, SERVICE_BYTES_MAX)
    if len(opened.attributes) > ATTRIBUTES_MAX:
        raise BadRecord(Reason.NOT_AVRO, f"has more than {ATTRIBUTES_MAX} attributes")
    if len(dict(opened.attributes)) < len(opened.attributes):
        raise BadRecord(Reason.NOT_AVRO, "has an attribute twice")
    for key, content in opened.attributes:
        if not key:
            raise BadRecord(Reason.NOT_AVRO, "an attribute has no key")
        _check_text("key of an attribute", key, ATTRIBUTE_KEY_BYTES_MAX)
        _check_text("value of an attribute", content, ATTRIBUTE_VALUE_BYTES_MAX)
    check_order_number(opened.service_order_number)
    begin_ms, interval_ms, until_ms = opened[-3:]
    if not 0 <= begin_ms <= until_ms <= LONG_MAX:
        detail = f"begins at {begin_ms} and is accepted until {until_ms}"
        raise BadRecord(Reason.BAD_TIME_SEQUENCE, detail)
    if not 1 <= interval_ms <= SEGMENT_LENGTH_MAX_MS:
        detail = f"a report interval of {interval_ms} ms, 1 to {SEGMENT_LENGTH_MAX_MS} are allowed"
        raise BadRecord(Reason.BAD_TIME_SEQUENCE, detail)


def check_span(opened: OrderOpened) -> None:
    """Raise BadRecord(TOO_LONG) for an opening that would be kept for too long.

    Apart from the rest, because a time in the future is told first.
    """
    begin_ms, _, until_ms = opened[-3:]
    if until_ms - begin_ms > OPENING_SPAN_MAX_MS:
        detail = f"accepted for {until_ms - begin_ms} ms, {OPENING_SPAN_MAX_MS} are allowed"
        raise BadRecord(Reason.TOO_LONG, detail)


def _check_text(name: str, text: str, bytes_max: int) -> None:
    if wrong := wrong_in(text, bytes_max):
        raise BadRecord(Reason.NOT_AVRO, f"the {name} {wrong}")


def _text(text: str) -> bytes:
    content = text.encode()
    return zigzag(len(content)) + content
