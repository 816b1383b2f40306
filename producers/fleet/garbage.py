"""Malformed records, each with the reason for which it must become a dead letter.

The bytes are written here by hand, byte for byte, so that they don't depend on any encoder
being wrong in the right way. A record that could be rejected for several reasons names the
first one in the contract's order of checks.
"""

from collections.abc import Callable
from typing import NamedTuple, Protocol

from durabill.producers.fleet.truth import SEGMENT_FINGERPRINT, SEGMENT_MARKER, SEGMENT_MAX_MS
from durabill.schemas import Reason

LONG_MIN = -(2**63)
LONG_MAX = 2**63 - 1
DAY_MS = 86_400_000
MINUTE_MS = 60_000


class Dice(Protocol):
    """The part of random.Random that the plan and the garbage use."""

    def random(self) -> float:
        """Return a number in [0, 1)."""
        ...

    def randrange(self, start: int, stop: int, /) -> int:
        """Return a number in [start, stop)."""
        ...

    def randbytes(self, n: int, /) -> bytes:
        """Return `n` bytes."""
        ...


class Garbage(NamedTuple):
    """One malformed record; `kind` names the recipe, for the reports."""

    kind: str
    reason: Reason
    key: bytes | None
    value: bytes | None


def zigzag(value: int) -> bytes:
    """Return the Avro long: sign in the lowest bit, seven bits a byte, lowest first."""
    plain = 2 * value if value >= 0 else -2 * value - 1
    out = bytearray()
    while plain >= 0x80:
        out.append(0x80 | plain % 0x80)
        plain //= 0x80
    return bytes([*out, plain])


def raw_segment(
    order_number: bytes, number: int, start_ms: int, end_ms: int, end_identifier: bool = False
) -> bytes:
    """Return the wire form of a segment whatever it says: nothing is checked."""
    return b"".join(
        (
            SEGMENT_MARKER,
            SEGMENT_FINGERPRINT,
            zigzag(len(order_number)),
            order_number,
            zigzag(number),
            zigzag(start_ms),
            zigzag(end_ms),
            b"\x01" if end_identifier else b"\x00",
        )
    )


class _Victim(NamedTuple):
    """The good record that a recipe spoils: [start_ms, end_ms) is recent and not empty."""

    order: bytes
    start_ms: int
    end_ms: int
    window_ms: int
    dice: Dice

    def good(self) -> bytes:
        return raw_segment(self.order, 1, self.start_ms, self.end_ms)

    def with_order(self, order: bytes) -> bytes:
        return raw_segment(order, 1, self.start_ms, self.end_ms)

    def with_number(self, number: int) -> bytes:
        return raw_segment(self.order, number, self.start_ms, self.end_ms)

    def with_times(self, start_ms: int, end_ms: int, end_identifier: bool = False) -> bytes:
        return raw_segment(self.order, 1, start_ms, end_ms, end_identifier)


_Record = tuple[bytes | None, bytes | None]
_Recipe = Callable[[_Victim], _Record]


def _not_avro() -> dict[str, _Recipe]:
    header = SEGMENT_MARKER + SEGMENT_FINGERPRINT
    return {
        "random bytes": lambda v: (v.order, b"\x7f" + v.dice.randbytes(v.dice.randrange(1, 80))),
        "empty value": lambda v: (v.order, b""),
        "null value": lambda v: (v.order, None),
        "null key and value": lambda v: (None, None),
        "JSON": lambda v: (v.order, b'{"service_order_number": "1", "business_data_number": 1}'),
        "marker alone": lambda v: (v.order, SEGMENT_MARKER),
        "cut in the fingerprint": lambda v: (v.order, header[:7]),
        "header alone": lambda v: (v.order, header),
        "cut in the body": lambda v: (v.order, v.good()[: -v.dice.randrange(1, 12)]),
        "bytes behind the body": lambda v: (v.order, v.good() + v.dice.randbytes(1)),
        "two records in one": lambda v: (v.order, v.good() + v.good()),
        "end identifier of 2": lambda v: (v.order, v.good()[:-1] + b"\x02"),
        "number of 11 bytes": lambda v: (v.order, header + b"\x80" * 10 + b"\x01" + v.good()[10:]),
        "string of negative length": lambda v: (v.order, header + zigzag(-3) + v.good()[11:]),
        "string of 2^62 bytes": lambda v: (v.order, header + zigzag(2**62) + v.good()[11:]),
    }


def _unknown_schema() -> dict[str, _Recipe]:
    def other(v: _Victim) -> bytes:
        fingerprint = v.dice.randbytes(7) + bytes([SEGMENT_FINGERPRINT[7] ^ 0x55])
        return SEGMENT_MARKER + fingerprint + v.good()[10:]

    return {
        "unknown fingerprint": lambda v: (v.order, other(v)),
        "unknown fingerprint, no body": lambda v: (v.order, other(v)[:10]),
        "unknown fingerprint, wrong key": lambda v: (b"?" + v.order, other(v)),
    }


def _key_mismatch() -> dict[str, _Recipe]:
    return {
        "null key": lambda v: (None, v.good()),
        "empty key": lambda v: (b"", v.good()),
        "another order's key": lambda v: (v.order, v.with_order(v.order[1:] + b"x9")),
        "key with a space": lambda v: (v.order + b" ", v.good()),
        "key with the number": lambda v: (v.order + b"/1", v.good()),
        "wrong key, empty order number": lambda v: (v.order, v.with_order(b"")),
        "wrong key, number 0": lambda v: (v.order + b"2", v.with_number(0)),
    }


def _bad_order_number() -> dict[str, _Recipe]:
    def both(make: Callable[[_Victim], bytes]) -> _Recipe:
        return lambda v: (make(v), v.with_order(make(v)))

    return {
        "empty order number": both(lambda v: b""),
        "65 bytes": both(lambda v: v.order + b"x" * (65 - len(v.order))),
        "22 characters of 3 bytes": both(lambda v: "単".encode() * 22),
        "NUL inside": both(lambda v: v.order[:60] + b"\x00"),
        "line feed at the end": both(lambda v: v.order[:60] + b"\n"),
        "DEL inside": both(lambda v: v.order[:60] + b"\x7f"),
        "C1 control character": both(lambda v: v.order[:20] + b"\xc2\x85"),
        "no UTF-8": both(lambda v: v.order[:20] + b"\xff\xfe"),
        "UTF-8 of a surrogate": both(lambda v: v.order[:20] + b"\xed\xa0\x80"),
        "no UTF-8, number 0": lambda v: (b"\xc3", raw_segment(b"\xc3", 0, 5, 1)),
    }


def _bad_number() -> dict[str, _Recipe]:
    return {
        "number 0": lambda v: (v.order, v.with_number(0)),
        "number -1": lambda v: (v.order, v.with_number(-1)),
        "least number": lambda v: (v.order, v.with_number(LONG_MIN)),
        "number 0, end before start": lambda v: (v.order, raw_segment(v.order, 0, 9, 5, True)),
    }


def _bad_times() -> dict[str, _Recipe]:
    return {
        "end before start": lambda v: (v.order, v.with_times(v.end_ms, v.start_ms)),
        "end before start, with end": lambda v: (v.order, v.with_times(v.end_ms, v.start_ms, True)),
        "negative start": lambda v: (v.order, v.with_times(-1, v.end_ms)),
        "both negative": lambda v: (v.order, v.with_times(-20, -10)),
        "empty without end": lambda v: (v.order, v.with_times(v.end_ms, v.end_ms)),
        "least start": lambda v: (v.order, v.with_times(LONG_MIN, v.end_ms)),
        "whole range of longs": lambda v: (v.order, v.with_times(LONG_MAX, LONG_MIN)),
        "negative and too long": lambda v: (v.order, v.with_times(-1, LONG_MAX)),
    }


def _bad_when() -> dict[Reason, dict[str, _Recipe]]:
    def too_late(v: _Victim) -> int:
        return v.end_ms - v.window_ms - v.dice.randrange(MINUTE_MS, DAY_MS)

    return {
        Reason.IN_THE_FUTURE: {
            "tomorrow": lambda v: (v.order, v.with_times(v.end_ms + DAY_MS, v.end_ms + DAY_MS + 9)),
            "in seconds for ms, later": lambda v: (v.order, v.with_times(v.start_ms, 10**16)),
            "empty end tomorrow": lambda v: (
                v.order,
                v.with_times(v.end_ms + DAY_MS, v.end_ms + DAY_MS, True),
            ),
            "greatest long": lambda v: (v.order, v.with_times(0, LONG_MAX)),
        },
        Reason.TOO_LONG: {
            "a day and 1 ms": lambda v: (
                v.order,
                v.with_times(v.end_ms - SEGMENT_MAX_MS - 1, v.end_ms),
            ),
            "since 1970": lambda v: (v.order, v.with_times(0, v.end_ms)),
            "since 1970, too late": lambda v: (v.order, v.with_times(0, too_late(v))),
        },
        Reason.TOO_LATE: {
            "before the window": lambda v: (
                v.order,
                v.with_times(v.end_ms - v.window_ms - DAY_MS, too_late(v)),
            ),
            "the first ms of 1970": lambda v: (v.order, v.with_times(0, 1)),
            "seconds for ms": lambda v: (
                v.order,
                v.with_times(v.start_ms // 1000, v.end_ms // 1000 + 1),
            ),
            "empty end of old": lambda v: (v.order, v.with_times(7, 7, True)),
        },
    }


def _all_recipes() -> tuple[tuple[str, Reason, _Recipe], ...]:
    by_reason = {
        Reason.NOT_AVRO: _not_avro(),
        Reason.UNKNOWN_SCHEMA: _unknown_schema(),
        Reason.KEY_MISMATCH: _key_mismatch(),
        Reason.BAD_ORDER_NUMBER: _bad_order_number(),
        Reason.BAD_BUSINESS_DATA_NUMBER: _bad_number(),
        Reason.BAD_TIME_SEQUENCE: _bad_times(),
        **_bad_when(),
    }
    return tuple(
        (kind, reason, recipe)
        for reason, recipes in by_reason.items()
        for kind, recipe in recipes.items()
    )


RECIPES = _all_recipes()
KINDS = tuple(kind for kind, _, _ in RECIPES)
"""Every kind of garbage. WRONG_PARTITION is none: such a record is sent on first. Nor is
TOO_FRAGMENTED, which takes ten thousand good records before it."""


def garbage(dice: Dice, order_number: str, now_ms: int, window_ms: int, kind: str = "") -> Garbage:
    """Return a malformed record that pretends to belong to `order_number`.

    Its verdict holds for append times from `now_ms` to half a day later. `window_ms` is the
    processor's correction window, longer than that. `kind` is one of KINDS; by default a
    reason is drawn first and then one of its kinds, so that no reason is rare.
    """
    order = order_number.encode()
    assert 1 <= len(order) <= 60, "room is left for recipes that lengthen the number"
    if not kind:
        reasons = sorted({reason for _, reason, _ in RECIPES})
        drawn = reasons[dice.randrange(0, len(reasons))]
        kinds = [name for name, reason, _ in RECIPES if reason is drawn]
        kind = kinds[dice.randrange(0, len(kinds))]
    end_ms = now_ms - dice.randrange(0, MINUTE_MS)
    victim = _Victim(order, end_ms - dice.randrange(1, MINUTE_MS), end_ms, window_ms, dice)
    name, reason, recipe = next(each for each in RECIPES if each[0] == kind)
    key, value = recipe(victim)
    return Garbage(name, reason, key, value)
