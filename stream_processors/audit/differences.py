"""In which fields two totals of one order differ, as findings. Pure."""

from collections.abc import Iterator
from typing import Any

from durabill.schemas import (
    TOTAL_HEADER,
    BadTotal,
    OrderTotal,
    Status,
    decode_total,
    encode_total,
    partition_for,
    plain_total,
)
from durabill.stream_processors.audit.findings import Finding, Kind

FIELDS: tuple[str, ...] = tuple(OrderTotal.__slots__)
_KIND_OF = {
    "digest": Kind.DIGEST_DIFFERS,
    "previous_digest": Kind.BROKEN_REVISION_CHAIN,
}


def differences(
    expected: OrderTotal,
    found: OrderTotal,
    place: str,
    *,
    kind: Kind | None = None,
    is_older_schema: bool = False,
) -> Iterator[Finding]:
    """Yield a finding for each field that differs; `kind` None: as the field says.

    A total that was written by the schema before had to have an upper bound, also where by now it
    would be unknown: from its start to its end.
    """
    for name in FIELDS:
        right, there = getattr(expected, name), getattr(found, name)
        if name == "upper_bound_ms" and is_older_schema and right is None:
            right = expected.ended_ms - expected.started_ms
        if right == there:
            continue
        yield Finding(
            kind or _KIND_OF.get(name, Kind.FIELD_DIFFERS),
            expected.service_order_number,
            expected.revision,
            name,
            text_of(right),
            text_of(there),
            place,
        )


def text_of(value: Any) -> str:
    """Return a field's value for people."""
    if isinstance(value, Status):
        return value.value
    if isinstance(value, tuple):
        return ", ".join(f"{first}-{last}" for first, last in value)
    return "-" if value is None else str(value)


def summary(total: OrderTotal) -> str:
    """Return a total in one line."""
    return f"{total.status.value}, {total.duration_ms} ms, digest {total.digest[:16]}"


def normal_form(value: bytes | None) -> bytes | None:
    """Return a total's bytes as this version writes them; other bytes come back as they are.

    The framing of a registry is put off: the id in it depends on the registry, not on the log.
    """
    if value is None or value.startswith(TOTAL_HEADER):
        return value
    plain = plain_total(value)
    if plain is not value:
        return plain
    try:
        return encode_total(decode_total(value))
    except BadTotal:
        return value


def is_older(value: bytes | None) -> bool:
    """Tell whether a readable total was written by the schema before."""
    return value is not None and not plain_total(value).startswith(TOTAL_HEADER)


def why_unreadable(
    key: bytes | None, value: bytes | None, partition: int, partitions: int
) -> str | None:
    """Return why a record of the totals topic is no total at its place; None: it is one."""
    try:
        total = decode_total(value)
    except BadTotal as error:
        return str(error)
    if key != total.service_order_number.encode():
        return f"the total is of {total.service_order_number!r}, the key is {key!r}"
    if partition_for(key, partitions) != partition:
        return f"order {total.service_order_number!r} belongs in another partition"
    return None
