"""The receipt of an upload: what the gateway says Kafka has, signed for anybody to check.

A compact JWS (RFC 7515), header {"alg":"Ed25519","kid":…,"typ":"receipt+jwt"}. Its payload:

    iat_ms  when the gateway signed, after Kafka's acknowledgement
    ten     the tenant · cli the client · topic the topic
    uploads [{ord number · par partition · off [first, last offset] · num [[first, last], …] the
            business data numbers, both included, in order and united · sha256 hex of the records'
            values, as they are in Kafka, one after the other in the order of their offsets · cnt
            how many records that are}, …]

Between the first and the last offset there may be records of others: those of the receipt have the
order number as their key, and one of the numbers.
"""

import base64
import binascii
import hashlib
from collections.abc import Iterable, Sequence

import msgspec

from durabill.schemas.errors import DurabillError

_CHARS_MAX = 1_000_000


class NoReceipt(DurabillError):
    """It is no receipt of an upload, or no set of keys: nothing can be said of it."""

    exit_code = 2


class NotSigned(DurabillError):
    """A receipt that none of the keys has signed."""


class ReceiptUpload(msgspec.Struct, frozen=True):
    """What was stored of one order. See the module; `off` is (first, last)."""

    ord: str
    par: int
    off: tuple[int, int]
    num: tuple[tuple[int, int], ...]
    sha256: str
    cnt: int = 0
    """0 where each number is that of one record."""

    @property
    def count(self) -> int:
        """Return how many records the receipt is of."""
        return self.cnt or sum(last - first + 1 for first, last in self.num)


class UploadReceipt(msgspec.Struct, frozen=True):
    """What a receipt says."""

    iat_ms: int
    ten: str
    cli: str
    topic: str
    uploads: tuple[ReceiptUpload, ...]


class PublicKey(msgspec.Struct, frozen=True):
    """One key of a JWK set; `x` is the public key itself."""

    kid: str = ""
    kty: str = ""
    crv: str = ""
    x: str = ""


class _PublicKeys(msgspec.Struct, frozen=True):
    keys: tuple[PublicKey, ...]


class _Head(msgspec.Struct, frozen=True):
    alg: str
    kid: str
    typ: str


def ranges_of(numbers: Iterable[int]) -> tuple[tuple[int, int], ...]:
    """Return business data numbers as ranges: in order, each number once, both ends included."""
    ranges: list[tuple[int, int]] = []
    for number in sorted(set(numbers)):
        if ranges and ranges[-1][1] + 1 == number:
            ranges[-1] = (ranges[-1][0], number)
        else:
            ranges.append((number, number))
    return tuple(ranges)


def upload_of(
    number: str,
    partition: int,
    offsets: tuple[int, int],
    numbers: Iterable[int],
    values: Sequence[bytes],
) -> ReceiptUpload:
    """Return what a receipt says of one order's records, `values` in the order of their offsets."""
    digest = digest_of(b"".join(values))
    return ReceiptUpload(number, partition, offsets, ranges_of(numbers), digest, len(values))


def digest_of(values: bytes) -> str:
    """Return what a receipt says of record values that stand one after the other."""
    return hashlib.sha256(values).hexdigest()


def receipt_head(kid: str) -> str:
    """Return the first part of a receipt that key `kid` signs."""
    head = b'{"alg":"Ed25519","kid":"%b","typ":"receipt+jwt"}' % kid.encode()
    return base64.urlsafe_b64encode(head).rstrip(b"=").decode()


def read_public_keys(content: bytes) -> dict[str, bytes]:
    """Return kid -> public key of a JWK set; keys of other kinds are left out. Raises NoReceipt."""
    try:
        found = msgspec.json.decode(content, type=_PublicKeys).keys
        keys = {
            each.kid: _decode64(each.x)
            for each in found
            if each.kid and (each.kty, each.crv) == ("OKP", "Ed25519")
        }
    except (msgspec.DecodeError, ValueError) as error:
        raise NoReceipt("the keys are no JWK set, as GET /v1/receipt-keys gives it") from error
    if not keys:
        raise NoReceipt("there is no Ed25519 key among the keys")
    return keys


def read_upload_receipt(text: str, keys: dict[str, bytes]) -> UploadReceipt:
    """Return what a receipt says that one of the keys has signed. Raises NoReceipt, NotSigned."""
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    token = text.strip()
    if len(token) > _CHARS_MAX or token.count(".") != 2 or not token.isascii():
        raise NoReceipt("it is no receipt of an upload: three parts with points between them")
    signed, _, signature = token.rpartition(".")
    head_part, _, body = signed.partition(".")
    try:
        head = msgspec.json.decode(_decode64(head_part), type=_Head)
        receipt = msgspec.json.decode(_decode64(body), type=UploadReceipt)
        proof = _decode64(signature)
    except (msgspec.DecodeError, ValueError) as error:
        raise NoReceipt("it is no receipt of an upload: its parts can't be read") from error
    if (head.alg, head.typ) != ("Ed25519", "receipt+jwt"):
        raise NoReceipt(f"it is signed as {head.alg[:20]!r}, {head.typ[:20]!r}: no receipt of ours")
    key = keys.get(head.kid)
    if key is None:
        raise NotSigned(f"none of the {len(keys)} keys is the one that it names, {head.kid[:64]!r}")
    try:
        Ed25519PublicKey.from_public_bytes(key).verify(proof, signed.encode())
    except (InvalidSignature, ValueError) as error:
        raise NotSigned(f"key {head.kid!r} has not signed it: it was changed, or forged") from error
    return receipt


def _decode64(text: str) -> bytes:
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except binascii.Error as error:
        raise ValueError("no base64url") from error
