"""Receipts of uploads that were signed together, and what is none."""

import base64
import json
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from durabill.schemas import SegmentEvent, encode_segment
from durabill.schemas.upload_receipt import Statement, receipts_of, upload_of

T0_MS = 1_800_000_000_000
SECRET = bytes(range(32))
KEY_ID = "vectors-1"
TOPIC = "billing.segments"


def receipts_file() -> dict[str, Any]:
    """Return the content of `receipts.json`."""
    key = Ed25519PrivateKey.from_private_bytes(SECRET)
    statements = [_statement(at) for at in range(5)]
    alone = receipts_of(statements[:1], T0_MS, KEY_ID, key.sign)
    together = receipts_of(statements, T0_MS, KEY_ID, key.sign)
    public = base64.urlsafe_b64encode(key.public_key().public_bytes_raw()).rstrip(b"=").decode()
    jwk = {"kid": KEY_ID, "kty": "OKP", "crv": "Ed25519", "alg": "Ed25519", "use": "sig"}
    return {
        "about": "Receipts of uploads, see docs/http.md: the first by itself, then five that were"
        " signed together. Each says what stands beside it.",
        "keys": {"keys": [jwk | {"x": public}]},
        "receipts": [
            {"receipt": receipt, "iat_ms": T0_MS, "statement": json.loads(_body(receipt))}
            for receipt in (*alone, *together)
        ],
        "not_signed": [
            {"says": says, "receipt": receipt} for says, receipt in _forged(*together).items()
        ],
    }


def _statement(at: int) -> Statement:
    number = f"01JVECTOR{at}"
    events = [
        SegmentEvent(number, each, T0_MS - 1_000 + each, T0_MS + each, False)
        for each in range(1, at + 2)
    ]
    upload = upload_of(
        number,
        at,
        (10 * at, 11 * at),
        [each.business_data_number for each in events],
        [encode_segment(each) for each in events],
    )
    return Statement("acme", f"meter-{at}", TOPIC, (upload,), f"{at:032x}")


def _body(receipt: str) -> bytes:
    body = receipt.split("~")[1]
    return base64.urlsafe_b64decode(body + "=" * (-len(body) % 4))


def _forged(first: str, second: str, *_: str) -> dict[str, str]:
    token, body, *steps = first.split("~")
    other = second.split("~")
    unsigned = f"{token.rpartition('.')[0]}.{'A' * 86}"
    return {
        "the statement of another receipt": "~".join([token, other[1], *steps]),
        "the steps of another receipt": "~".join([token, body, *other[2:]]),
        "a step is missing": "~".join([token, body, *steps[:-1]]),
        "a step on the wrong side": "~".join([token, body, "L" + steps[0][1:], *steps[1:]]),
        "another signature": "~".join([unsigned, body, *steps]),
    }
