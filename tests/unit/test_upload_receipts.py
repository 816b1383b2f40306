"""Receipts of uploads: who has signed them, and whether the log has what they say."""

import asyncio
import hashlib
import json
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from joserfc import jws
from joserfc.jwk import KeySet as JwkSet

from durabill.producers.gateway.caller import ALL_SCOPES, Caller
from durabill.producers.gateway.key_files import WatchedKeys, make_keys, read_keys, replace_keys
from durabill.producers.gateway.key_sets import (
    HAND_OVER_MS,
    Kind,
    new_keys,
    rotated,
)
from durabill.producers.gateway.receipts import ReceiptSigner
from durabill.schemas import SegmentEvent, encode_segment
from durabill.schemas.base64url import decode64, encode64
from durabill.schemas.merkle import leaf_hash, node_hash
from durabill.schemas.upload_receipt import (
    NoReceipt,
    NotSigned,
    ReceiptUpload,
    ranges_of,
    read_public_keys,
    read_upload_receipt,
    upload_of,
)
from durabill.stream_processors.audit.upload_proof import CannotTell, Held, compare

NOW_MS = 1_800_000_000_000
ANNA = Caller("acme", "anna", ALL_SCOPES, "key-1")


def segment(number: int, length_ms: int = 10, order: str = "SO1") -> bytes:
    return encode_segment(SegmentEvent(order, number, NOW_MS, NOW_MS + length_ms, False))


def upload(numbers: Sequence[int] = (1, 2, 3), first: int = 7) -> ReceiptUpload:
    offsets = first, first + len(numbers) - 1
    return upload_of("SO1", 2, offsets, numbers, [segment(each) for each in numbers])


def signer(path: Path | None = None, now_ms: int = NOW_MS) -> ReceiptSigner:
    return ReceiptSigner(WatchedKeys(path, Kind.RECEIPT), "billing.segments", lambda: now_ms)


def sign(made: ReceiptSigner, *uploads: ReceiptUpload) -> str:
    (receipt,) = made.sign_together([made.statement(ANNA, uploads or [upload()])])
    return receipt


def root_of(hashes: Sequence[bytes]) -> bytes:
    """RFC 9162's MTH, as its text has it."""
    if len(hashes) == 1:
        return hashes[0]
    half = 1 << (len(hashes) - 1).bit_length() - 1
    return node_hash(root_of(hashes[:half]), root_of(hashes[half:]))


def public(made: ReceiptSigner) -> bytes:
    return msgspec.json.encode(made.public_keys())


def test_a_receipt_says_what_was_signed() -> None:
    made = signer()
    receipt = read_upload_receipt(sign(made), read_public_keys(public(made)))
    assert receipt.uploads == (upload(),)
    told = receipt.iat_ms, receipt.ten, receipt.cli, receipt.topic
    assert told == (NOW_MS, "acme", "anna", "billing.segments")


def test_somebody_elses_jws_library_checks_it() -> None:
    made = signer()
    keys = JwkSet.import_key_set(json.loads(public(made)))
    token, statement = sign(made).split("~")
    found = jws.deserialize_compact(token, keys, algorithms=["Ed25519"])
    assert found.headers()["typ"] == "receipt+jwt"
    body = decode64(statement)
    assert json.loads(body)["uploads"][0]["off"] == [7, 9]
    root = encode64(hashlib.sha256(b"\0" + body).digest())
    assert json.loads(found.payload) == {"iat_ms": NOW_MS, "root": root}


@pytest.mark.parametrize("count", [*range(1, 10), 31, 32, 33])
def test_requests_that_are_signed_together(count: int) -> None:
    """Each has its own receipt, over the tree of RFC 9162."""
    made = signer()
    statements = [made.statement(ANNA, [upload(first=at)]) for at in range(count)]
    receipts = made.sign_together(statements)
    keys = read_public_keys(public(made))
    read = [read_upload_receipt(each, keys).uploads[0].off[0] for each in receipts]
    assert read == list(range(count))
    assert len({each.partition("~")[0] for each in receipts}) == 1
    bodies = [decode64(each.split("~")[1]) for each in receipts]
    payload = json.loads(decode64(receipts[0].split(".")[1]))
    assert payload["root"] == encode64(root_of([leaf_hash(each) for each in bodies]))
    assert max(len(each.split("~")) for each in receipts) == 2 + (count - 1).bit_length()


def test_a_receipt_says_nothing_of_the_others_that_it_was_signed_with() -> None:
    """Not even to somebody who guesses what their statements say: these are salted."""
    made = signer()
    statements = [made.statement(ANNA, [upload()]) for _ in range(8)]
    receipts = made.sign_together(statements)
    hashes = [{step[1:] for step in each.split("~")[2:]} for each in receipts]
    assert len(hashes[0] | hashes[1]) == 4
    assert len({each.salt for each in statements}) == 8
    assert all(len(each.salt) == 32 for each in statements)


def test_what_waits_at_the_same_moment_is_signed_together() -> None:
    made = signer()

    async def ask() -> list[str | BaseException]:
        asked = [asyncio.ensure_future(made.sign(ANNA, [upload(first=at)])) for at in range(3)]
        await asyncio.sleep(0)
        asked[1].cancel()
        first = await asyncio.gather(*asked, return_exceptions=True)
        return [*first, await made.sign(ANNA, [upload(first=9)])]

    first, gone, third, later = asyncio.run(ask())
    assert isinstance(gone, asyncio.CancelledError)
    keys = read_public_keys(public(made))
    told = [
        read_upload_receipt(str(each), keys).uploads[0].off[0] for each in (first, third, later)
    ]
    assert told == [0, 2, 9]
    assert str(first).partition("~")[0] == str(third).partition("~")[0]


def test_keys_that_cant_sign_fail_each_request_that_waits() -> None:
    made = ReceiptSigner(WatchedKeys(None, Kind.RECEIPT), "t", lambda: 1 // 0)

    async def ask() -> list[str | BaseException]:
        asked = [made.sign(ANNA, [upload()]) for _ in range(2)]
        return await asyncio.gather(*asked, return_exceptions=True)

    assert [type(each) for each in asyncio.run(ask())] == [ZeroDivisionError] * 2


def test_what_was_signed_with_an_older_key_holds_for_good(tmp_path: Path) -> None:
    path = tmp_path / "receipts.json"
    make_keys(path, new_keys(Kind.RECEIPT))
    tokens, now_ms = [], NOW_MS
    for _ in range(4):
        tokens.append(sign(signer(path, now_ms)))
        replace_keys(path, rotated(read_keys(path, Kind.RECEIPT), now_ms))
        now_ms += HAND_OVER_MS
    keys = read_public_keys(public(signer(path)))
    kids = {token.partition(".")[0] for token in tokens}
    assert (len(kids), len(keys)) == (4, 5)
    for token in tokens:
        assert read_upload_receipt(token, keys).uploads == (upload(),)
    content = path.read_text(encoding="utf-8")
    assert content.count('"d"') == 2, "secrets that nobody needs any more have gone"


def test_public_keys_are_public_alone() -> None:
    keys = WatchedKeys(None, Kind.RECEIPT)
    made = ReceiptSigner(keys, "t", lambda: NOW_MS)
    assert keys.keys.keys[0].d not in public(made).decode()
    assert set(json.loads(public(made))["keys"][0]) == {"kid", "kty", "crv", "alg", "use", "x"}


def respelt(receipt: Sequence[str], at: int) -> str:
    """A receipt of which one part has another letter, and the same bytes to who isn't strict."""
    parts = [*receipt]
    if len(parts[at].rpartition(".")[2]) % 4 == 0:  # each letter counts
        parts[at] += "="
    else:
        parts[at] = parts[at][:-1] + chr(ord(parts[at][-1]) + 1)
    return "~".join(parts)


def test_what_was_changed_or_signed_by_others_proves_nothing() -> None:
    made, other = signer(), signer()
    statements = [made.statement(ANNA, [upload(first=at)]) for at in range(3)]
    receipt, neighbour, third = (each.split("~") for each in made.sign_together(statements))
    token, body, *steps = receipt
    head, payload, signature = token.split(".")
    keys = read_public_keys(public(made))
    said = json.loads(decode64(body))
    said["uploads"][0]["num"] = [[1, 99]]
    forged = encode64(json.dumps(said).encode())
    rooted = encode64(
        json.dumps({**json.loads(decode64(payload)), "root": encode64(bytes(32))}).encode()
    )
    pair = encode64(b"\1" + decode64(steps[0][1:]) + decode64(steps[1][1:]))
    for parts in (
        sign(other).split("~"),
        [token, forged, *steps],
        [token, body, *steps[:1]],
        [token, body, *reversed(steps)],
        [token, body, *steps, steps[0]],
        [token, body, "L" + steps[0][1:], *steps[1:]],
        [token, body, *neighbour[2:]],
        [token, third[1], *steps],
        [f"{head}.{rooted}.{signature}", body, *steps],
        [f"{head}.{payload}.{encode64(bytes(64))}", body, *steps],
        [f"{head}.{payload}.{encode64(b'')}", body, *steps],
    ):
        with pytest.raises(NotSigned):
            read_upload_receipt("~".join(parts), keys)
    none = encode64(b'{"alg":"none","kid":"x","typ":"receipt+jwt"}')
    deep = encode64(b'{"x":' + b"[" * 5_000)
    for text in (
        *("", "x", "~", "a.b.c", "a.b.c~", "a.b~c", token, token[:40]),
        f"a.b.c.d~{body}",
        f"{none}.{payload}.~{body}",
        f"{token}~{body[:-4]}é",
        f"{token}~{pair}",
        f"{token}~{body}~",
        f"{token}~{body}~X{steps[0][1:]}",
        f"{token}~{body}~{steps[0]}AAAA",
        "~".join([token, body, *(steps[:1] * 33)]),
        f"{deep}.{payload}.{signature}~{body}",
        f"{token}~{deep}",
        *(respelt(receipt, at) for at in range(3)),
        f"{token}~{body}{' ' * 1_000_000}~",
    ):
        with pytest.raises(NoReceipt):
            read_upload_receipt(text, keys)
    assert read_upload_receipt("~".join(receipt) + "\n", keys).uploads == (upload(first=0),)


@pytest.mark.parametrize("content", [b"", b"{}", b'{"keys":[]}', b'{"keys":[{"kty":"oct"}]}'])
def test_what_is_no_set_of_keys(content: bytes) -> None:
    with pytest.raises(NoReceipt):
        read_public_keys(content)


@given(st.lists(st.integers(1, 30), min_size=1))
def test_ranges_hold_each_number_once(numbers: list[int]) -> None:
    ranges = ranges_of(numbers)
    told = [each for first, last in ranges for each in range(first, last + 1)]
    assert told == sorted(set(numbers))
    assert all(a[1] + 1 < b[0] for a, b in pairwise(ranges))


# -- beside the log


def held(*values: tuple[int, bytes, str]) -> list[Held]:
    return [Held(offset, order.encode(), value) for offset, value, order in values]


def own(first: int = 7) -> list[Held]:
    return held(*((first + at, segment(at + 1), "SO1") for at in range(3)))


def test_the_very_records_prove_it() -> None:
    assert compare(upload(), own()) == ""


def test_records_of_others_between_dont_matter() -> None:
    between = held((8, segment(2, order="SO2"), "SO2"), (9, segment(44), "SO1"), (10, b"x", "SO1"))
    spread = [own()[0], *between, *held((11, segment(2), "SO1"), (12, segment(3), "SO1"))]
    assert compare(_to(12), spread) == ""


def _to(last: int) -> ReceiptUpload:
    return msgspec.structs.replace(upload(), off=(7, last))


def test_repeats_of_its_numbers_are_told_apart_by_the_digest() -> None:
    repeat = held((8, segment(1, length_ms=11), "SO1"), (9, segment(3, length_ms=12), "SO1"))
    rest = held((10, segment(2), "SO1"), (11, segment(3), "SO1"))
    assert compare(_to(11), [own()[0], *repeat, *rest]) == ""


@pytest.mark.parametrize("at", range(3))
def test_a_record_that_is_missing_or_another(at: int) -> None:
    records = own()
    assert compare(upload(), records[:at] + records[at + 1 :]) == "2 of its 3 records are there"
    records[at] = records[at]._replace(value=segment(at + 1, length_ms=999))
    assert "digest" in compare(upload(), records)
    records[at] = records[at]._replace(key=b"SO2")
    assert compare(upload(), records)


def test_records_elsewhere_are_not_those_of_the_receipt() -> None:
    assert "offset" in compare(_to(10), own())


def test_numbers_that_the_records_dont_have() -> None:
    lying = msgspec.structs.replace(upload(), num=((1, 4),), cnt=3)
    assert compare(lying, own()) == "its records have other numbers"


FRAMING = b"\0\0\0\0\x07"


def framed(number: int, length_ms: int = 10) -> bytes:
    event = SegmentEvent("SO1", number, NOW_MS, NOW_MS + length_ms, False)
    return encode_segment(event, FRAMING)


def framed_upload() -> ReceiptUpload:
    numbers = (1, 2, 3)
    return upload_of("SO1", 2, (7, 9), numbers, [framed(each) for each in numbers])


def test_records_in_a_registrys_framing_prove_it_as_well() -> None:
    records = held(*((6 + at, framed(at), "SO1") for at in (1, 2, 3)))
    assert compare(framed_upload(), records) == ""
    records[1] = records[1]._replace(value=framed(2, length_ms=999))
    assert "digest" in compare(framed_upload(), records)


@pytest.mark.parametrize("value", [FRAMING + b"\xff" * 9, b"\xc3\x01 of another schema", b"\0"])
def test_what_cant_be_read_disproves_nothing(value: bytes) -> None:
    records = own()
    assert compare(_to(10), [*records[:2], *held((9, value, "SO1"), (10, segment(3), "SO1"))]) == ""
    records[1] = records[1]._replace(value=value)
    with pytest.raises(CannotTell, match=r"1 records of its order .* can't be read"):
        compare(upload(), records)


def test_too_many_repeats_to_be_told_apart() -> None:
    many = [Held(8 + at, b"SO1", segment(2, length_ms=at + 20)) for at in range(40)]
    records = [own()[0], *many, *held((48, segment(2), "SO1"), (49, segment(3), "SO1"))]
    wrong = msgspec.structs.replace(_to(49), sha256="0" * 64, cnt=20)
    with pytest.raises(CannotTell, match="repeats"):
        compare(wrong, records)
