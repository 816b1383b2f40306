"""Receipts of uploads, signed by a key that anybody may know, and the records that they are of."""

import json
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from durabill.schemas import (
    ClockMark,
    SegmentEvent,
    decode_segment,
    encode_clock_mark,
    encode_segment,
)
from durabill.schemas.base64url import decode64, encode64
from durabill.schemas.upload_receipt import (
    NotSigned,
    ReceiptUpload,
    Statement,
    read_public_keys,
    read_upload_receipt,
    receipts_of,
    upload_of,
)
from durabill.stream_processors.audit.upload_proof import Held, compare
from tests.vectors.orders import T0_MS, S

_KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
_KID = "vectors"
PROVEN, NOT_PROVEN, NOT_SIGNED = "PROVEN", "NOT_PROVEN", "NOT_SIGNED"


def _signed(*uploads: ReceiptUpload) -> list[str]:
    """Receipts of requests that are signed together, one an upload."""
    statements = [
        Statement("acme", "meter-7", "billing.segments", (upload,), f"{at:032x}")
        for at, upload in enumerate(uploads)
    ]
    return receipts_of(statements, T0_MS, _KID, _KEY.sign)


def _held(offset: int, order: str, number: int, length_s: int = 10) -> Held:
    start_ms = T0_MS + number * 10 * S
    event = SegmentEvent(order, number, start_ms, start_ms + length_s * S, False)
    return Held(offset, order.encode(), encode_segment(event))


def _upload(*records: Held, order: str = "SO1") -> ReceiptUpload:
    values = [each.value or b"" for each in records]
    numbers = [decode_segment(each).business_data_number for each in values]
    return upload_of(order, 0, (records[0].offset, records[-1].offset), numbers, values)


def receipts_file() -> dict[str, Any]:
    """Receipts with what lies between their offsets, and whether it is proven."""
    public = _KEY.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
    keys = {
        "keys": [
            {
                "kid": _KID,
                "kty": "OKP",
                "crv": "Ed25519",
                "alg": "Ed25519",
                "use": "sig",
                "x": encode64(public),
            }
        ]
    }
    return {
        "about": "Receipts of uploads, the keys, and the records of partition 0 from the first to "
        "the last offset of a receipt. `verdict`: PROVEN, NOT_PROVEN where the records are others, "
        "NOT_SIGNED where no key has signed it.",
        "keys": keys,
        "receipts": [_case(json.dumps(keys).encode(), *each) for each in _cases()],
    }


def _cases() -> list[tuple[str, str, list[Held]]]:
    three = [_held(7, "SO1", 3), _held(8, "SO1", 1), _held(9, "SO1", 2)]
    others = [_held(8, "SO2", 1), Held(9, None, encode_clock_mark(ClockMark("durabill", T0_MS)))]
    apart = [three[0], *others, _held(10, "SO1", 5)]
    twice = [_held(7, "SO1", 1), _held(8, "SO1", 1)]
    (alone,) = _signed(_upload(*three))
    token, body = alone.split("~")
    first, second, *_, last = _signed(*(_upload(*each) for each in (three, twice, apart[::3]) * 2))
    tree, own, *steps = first.split("~")
    unsigned = f"{token.rpartition('.')[0]}.{encode64(bytes(64))}"
    others_steps = second.split("~")[2:]
    return [
        ("three records, their numbers united", alone, three),
        ("records of others between", _signed(_upload(apart[0], apart[-1]))[0], apart),
        ("one number twice", _signed(_upload(*twice))[0], twice),
        ("another length", alone, [*three[:2], _held(9, "SO1", 2, 11)]),
        ("a record is not there", alone, three[:2]),
        ("of another order", alone, [*three[:2], _held(9, "SO2", 2)]),
        ("signed together with five others, the first", first, three),
        ("signed together with five others, the second", second, twice),
        ("signed together with five others, the last", last, apart),
        ("another statement", f"{token}~{own}", three),
        ("another signature", f"{unsigned}~{body}", three),
        ("without its last step", "~".join([tree, own, *steps[:-1]]), three),
        ("a step on the other side", "~".join([tree, own, "L" + steps[0][1:], *steps[1:]]), three),
        ("the steps of its neighbour", "~".join([tree, own, *others_steps]), three),
    ]


def _case(keys: bytes, what: str, receipt: str, records: list[Held]) -> dict[str, Any]:
    try:
        (upload,) = read_upload_receipt(receipt, read_public_keys(keys)).uploads
        verdict = NOT_PROVEN if compare(upload, records) else PROVEN
    except NotSigned:
        verdict = NOT_SIGNED
    token, statement, *_ = receipt.split("~")
    return {
        "what": what,
        "receipt": receipt,
        "payload": json.loads(decode64(token.split(".")[1])),
        "statement": json.loads(decode64(statement)),
        "records": [
            {
                "offset": each.offset,
                "key_hex": None if each.key is None else each.key.hex(),
                "value_hex": (each.value or b"").hex(),
            }
            for each in records
        ],
        "verdict": verdict,
    }
