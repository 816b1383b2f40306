"""The receipt of an upload: what the gateway says Kafka has, signed for anybody to check.

    <signed>~<statement>~<step>~<step>…

`signed` is a compact JWS (RFC 7515), header {"alg":"Ed25519","kid":…,"typ":"receipt+jwt"}, payload

    iat_ms  when the gateway signed, after Kafka's acknowledgement
    root    the hash, base64url, of all statements that were signed with this one

The statement is base64url of JSON, and this receipt's own:

    ten     the tenant · cli the client · topic the topic
    uploads [{ord number · par partition · off [first, last offset] · num [[first, last], …] the
            business data numbers, both included, in order and united · sha256 hex of the records'
            values, as they are in Kafka, one after the other in the order of their offsets · cnt
            how many records that are}, …]
    salt    unguessable, so that nobody can find out by the hashes what others' statements say

Between the first and the last offset there may be records of others: those of the receipt have the
order number as their key, and one of the numbers.

Theory: a signature costs more than all else of a small request. So one is made of all requests that
Kafka has acknowledged at the same moment, over the root of a hash tree of their statements, as
Roughtime does (draft-ietf-ntp-roughtime), with the hashes of RFC 9162, section 2.1.1: of a
statement SHA-256(00 ‖ its JSON), of two hashes SHA-256(01 ‖ left ‖ right). The steps lead from the
statement to the root: each is R or L, for the side on which the other hash stands, and that hash,
base64url. A statement that was signed alone has none. The parts' form is that of an SD-JWT
(RFC 9901), whose statements are salted for the same reason.
"""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import msgspec

from durabill.schemas.base64url import decode64, encode64
from durabill.schemas.errors import DurabillError
from durabill.schemas.merkle import leaf_hash, node_hash

_CHARS_MAX = 1_000_000
_STEPS_MAX = 32
_STEP_CHARS = 44


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


class Statement(msgspec.Struct, frozen=True):
    """What a receipt says of one request."""

    ten: str
    cli: str
    topic: str
    uploads: tuple[ReceiptUpload, ...]
    salt: str


class UploadReceipt(msgspec.Struct, frozen=True):
    """What a receipt says, and when it was signed."""

    iat_ms: int
    ten: str
    cli: str
    topic: str
    uploads: tuple[ReceiptUpload, ...]


class _Signed(msgspec.Struct, frozen=True):
    iat_ms: int
    root: str


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


def receipts_of(
    statements: Sequence[Statement], iat_ms: int, kid: str, sign: Callable[[bytes], bytes]
) -> list[str]:
    """Return the receipts of some statements, signed together with key `kid`."""
    bodies = [msgspec.json.encode(each) for each in statements]
    steps, root = _tree([leaf_hash(body) for body in bodies])
    head = b'{"alg":"Ed25519","kid":"%b","typ":"receipt+jwt"}' % kid.encode()
    payload = msgspec.json.encode(_Signed(iat_ms, encode64(root)))
    signed = f"{encode64(head)}.{encode64(payload)}"
    token = f"{signed}.{encode64(sign(signed.encode()))}"
    return [f"{token}~{encode64(body)}{each}" for body, each in zip(bodies, steps, strict=True)]


def _tree(hashes: list[bytes]) -> tuple[list[str], bytes]:
    """Return the steps from each hash to the root, and the root.

    A hash without another one beside it moves up as it is, which is the shape of RFC 9162.
    """
    levels = [hashes]
    while len(hashes) > 1:
        above = [node_hash(*pair) for pair in zip(hashes[::2], hashes[1::2], strict=False)]
        if len(hashes) % 2:
            above.append(hashes[-1])
        hashes = above
        levels.append(hashes)
    steps = [""]
    for below in levels[-2::-1]:  # from the root down: a step is that of its place above, and one
        above_steps, steps = steps, []
        for left, right, onwards in zip(below[::2], below[1::2], above_steps, strict=False):
            steps += f"~R{encode64(right)}{onwards}", f"~L{encode64(left)}{onwards}"
        if len(below) % 2:
            steps.append(above_steps[-1])
    return steps, hashes[0]


def read_public_keys(content: bytes) -> dict[str, bytes]:
    """Return kid -> public key of a JWK set; keys of other kinds are left out. Raises NoReceipt."""
    try:
        found = msgspec.json.decode(content, type=_PublicKeys).keys
        keys = {
            each.kid: decode64(each.x)
            for each in found
            if each.kid and (each.kty, each.crv) == ("OKP", "Ed25519")
        }
    except (ValueError, RecursionError) as error:
        raise NoReceipt("the keys are no JWK set, as GET /v1/receipt-keys gives it") from error
    if not keys:
        raise NoReceipt("there is no Ed25519 key among the keys")
    return keys


def read_upload_receipt(text: str, keys: dict[str, bytes]) -> UploadReceipt:
    """Return what a receipt says that one of the keys has signed. Raises NoReceipt, NotSigned."""
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    parts = _parts(text)
    signed, _, signature = parts.token.rpartition(".")
    head_part, _, payload_part = signed.partition(".")
    try:
        head = msgspec.json.decode(decode64(head_part), type=_Head)
        payload = msgspec.json.decode(decode64(payload_part), type=_Signed)
        root, proof = decode64(payload.root), decode64(signature)
    except (ValueError, RecursionError) as error:
        raise NoReceipt(_UNREADABLE) from error
    if (head.alg, head.typ) != ("Ed25519", "receipt+jwt"):
        raise NoReceipt(f"it is signed as {head.alg[:20]!r}, {head.typ[:20]!r}: no receipt of ours")
    key = keys.get(head.kid)
    if key is None:
        raise NotSigned(f"none of the {len(keys)} keys is the one that it names, {head.kid[:64]!r}")
    try:
        Ed25519PublicKey.from_public_bytes(key).verify(proof, signed.encode())
    except (InvalidSignature, ValueError) as error:
        raise NotSigned(f"key {head.kid!r} has not signed it: it was changed, or forged") from error
    if parts.root != root:
        raise NotSigned("what it says is not among what was signed: it was changed, or forged")
    said = parts.statement
    return UploadReceipt(payload.iat_ms, said.ten, said.cli, said.topic, said.uploads)


class _Parts(NamedTuple):
    """A receipt as it was read: `root` follows from the statement and the steps."""

    token: str
    statement: Statement
    root: bytes


def _parts(text: str) -> _Parts:
    token, *rest = text.strip().split("~", 2 + _STEPS_MAX)
    is_whole = token.count(".") == 2 and 1 <= len(rest) <= 1 + _STEPS_MAX
    if not is_whole or len(text) > _CHARS_MAX or not text.isascii():
        raise NoReceipt("it is no receipt of an upload: a JWS, a statement, steps, with ~ between")
    body_part, *steps = rest
    try:
        body = decode64(body_part)
        statement = msgspec.json.decode(body, type=Statement)
        found = leaf_hash(body)
        for step in steps:
            beside = decode64(step[1:])
            if len(step) != _STEP_CHARS or step[0] not in "LR":
                raise NoReceipt(_UNREADABLE)
            found = node_hash(beside, found) if step[0] == "L" else node_hash(found, beside)
    except (ValueError, RecursionError) as error:
        raise NoReceipt(_UNREADABLE) from error
    return _Parts(token, statement, found)


_UNREADABLE = "it is no receipt of an upload: its parts can't be read"
