"""The fleet's own oracle of openings: its own reader of their wire form, and what each must be.

Shares nothing with the stream processor; see `truth`. What an opening changes about its order is in
`truth_order`.
"""

import re
import unicodedata

from durabill.producers.fleet.truth_order import FUTURE_TOLERANCE_MS, Opening
from durabill.producers.fleet.truth_wire import LogRecord, is_order_number, read_long
from durabill.schemas import Reason

OPENING_START = bytes.fromhex("c301a7ee4e2f48ddd1fa")
TEXTS_MAX = {"tenant": 64, "client": 64, "service": 64}
ATTRIBUTES_MAX, ATTRIBUTE_KEY_MAX, ATTRIBUTE_VALUE_MAX = 16, 64, 256
INTERVAL_MAX_MS = 86_400_000
SPAN_MAX_MS = 315_360_000_000


def claims_to_open(record: LogRecord) -> bool:
    """Return whether a record's value has the fingerprint of openings."""
    return (record.value or b"").startswith(OPENING_START)


def judge_opening(record: LogRecord, arrival_ms: int) -> tuple[bytes, Opening] | Reason:
    """Return (order number, opening) if the record is one by itself, else the first reason."""
    try:
        number, owner, (begin_ms, interval_ms, until_ms) = _read((record.value or b"")[10:])
    except ValueError:
        return Reason.NOT_AVRO
    in_order = 0 <= begin_ms <= until_ms and 1 <= interval_ms <= INTERVAL_MAX_MS
    checks = (
        (record.key != number, Reason.KEY_MISMATCH),
        (not is_order_number(number), Reason.BAD_ORDER_NUMBER),
        (not in_order, Reason.BAD_TIME_SEQUENCE),
        (begin_ms > arrival_ms + FUTURE_TOLERANCE_MS, Reason.IN_THE_FUTURE),
        (until_ms - begin_ms > SPAN_MAX_MS, Reason.TOO_LONG),
        (until_ms < arrival_ms, Reason.TOO_LATE),
    )
    for holds, reason in checks:
        if holds:
            return reason
    return number, Opening(owner, begin_ms, until_ms)


def _read(body: bytes) -> tuple[bytes, tuple[str, str], list[int]]:
    """Return (number, (tenant, client), the three times), or raise ValueError."""
    number, at = _string(body, 0)
    texts = {}
    for name, most in TEXTS_MAX.items():
        texts[name], at = _text(body, at, most)
    if not re.fullmatch("[A-Za-z0-9._-]+", texts["tenant"]):
        raise ValueError("no tenant")
    keys: list[str] = []
    while True:
        block, at = read_long(body, at)
        if block < 0:
            _, at = read_long(body, at)
        if block == 0:
            break
        if len(keys) + abs(block) > ATTRIBUTES_MAX:
            raise ValueError("too many attributes")
        for _ in range(abs(block)):
            key, at = _text(body, at, ATTRIBUTE_KEY_MAX)
            _, at = _text(body, at, ATTRIBUTE_VALUE_MAX)
            keys.append(key)
    if "" in keys or len(set(keys)) < len(keys):
        raise ValueError("an attribute without a key, or twice")
    times_ms = []
    for _ in range(3):
        time_ms, at = read_long(body, at)
        times_ms.append(time_ms)
    if at != len(body):
        raise ValueError("bytes follow")
    return number, (texts["tenant"], texts["client"]), times_ms


def _string(body: bytes, at: int) -> tuple[bytes, int]:
    size, at = read_long(body, at)
    if size < 0 or at + size > len(body):
        raise ValueError("the string is cut off")
    return body[at : at + size], at + size


def _text(body: bytes, at: int, most: int) -> tuple[str, int]:
    found, at = _string(body, at)
    text = found.decode()  # a UnicodeDecodeError is a ValueError
    if len(found) > most or any(unicodedata.category(char) == "Cc" for char in text):
        raise ValueError("too long, or with a control character")
    return text, at
