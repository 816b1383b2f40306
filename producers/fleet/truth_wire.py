"""The fleet's oracle reads the log: records, Avro's longs, order numbers. See `truth`."""

from functools import lru_cache
from typing import NamedTuple

Headers = tuple[tuple[str, bytes | None], ...]


class LogRecord(NamedTuple):
    """One record as it lies in the segments topic; `append_ms` is the broker's own time."""

    partition: int
    offset: int
    append_ms: int
    key: bytes | None
    value: bytes | None
    headers: Headers


def read_long(body: bytes, at: int) -> tuple[int, int]:
    """Return (Avro long at `at`, the position behind it); raise ValueError if there is none."""
    plain = 0
    for place, byte in enumerate(body[at : at + 10]):
        plain += (byte & 0x7F) << (7 * place)
        if byte < 0x80:
            if plain >= 1 << 64:
                raise ValueError("the number has more than 64 bits")
            return (-(plain // 2) - 1 if plain % 2 else plain // 2), at + place + 1
    raise ValueError("the number is cut off, or has more than ten bytes")


def read_body(body: bytes) -> tuple[bytes, int, int, int, bool]:
    """Return (number, business data number, start, end, end identifier), or raise ValueError."""
    size, at = read_long(body, 0)
    number = body[at : at + size] if size >= 0 else b""
    if len(number) != size:
        raise ValueError("the string is cut off")
    business_data_number, at = read_long(body, at + size)
    start_ms, at = read_long(body, at)
    end_ms, at = read_long(body, at)
    if body[at:] not in (b"\x00", b"\x01"):
        raise ValueError("one byte, 0 or 1, must be left for the end identifier")
    return number, business_data_number, start_ms, end_ms, body[at:] == b"\x01"


@lru_cache(100_000)
def is_order_number(number: bytes) -> bool:
    """Return whether bytes are 1 to 64 of UTF-8 without a control character."""
    try:
        text = number.decode("utf-8")
    except UnicodeDecodeError:
        return False
    controls = any(ord(char) < 0x20 or 0x7F <= ord(char) <= 0x9F for char in text)
    return 1 <= len(number) <= 64 and not controls
