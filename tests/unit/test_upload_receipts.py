"""Receipts of uploads: who has signed them, and whether the log has what they say."""

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
from durabill.producers.gateway.key_sets import HAND_OVER_MS, Kind, encode64, new_keys, rotated
from durabill.producers.gateway.receipts import ReceiptSigner
from durabill.schemas import SegmentEvent, encode_segment
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


def public(made: ReceiptSigner) -> bytes:
    return msgspec.json.encode(made.public_keys())


def test_a_receipt_says_what_was_signed() -> None:
    made = signer()
    receipt = read_upload_receipt(made.sign(ANNA, [upload()]), read_public_keys(public(made)))
    assert receipt.uploads == (upload(),)
    told = receipt.iat_ms, receipt.ten, receipt.cli, receipt.topic
    assert told == (NOW_MS, "acme", "anna", "billing.segments")


def test_somebody_elses_jws_library_checks_it() -> None:
    made = signer()
    keys = JwkSet.import_key_set(json.loads(public(made)))
    token = made.sign(ANNA, [upload()])
    found = jws.deserialize_compact(token, keys, algorithms=["Ed25519"])
    assert found.headers()["typ"] == "receipt+jwt"
    assert json.loads(found.payload)["uploads"][0]["off"] == [7, 9]


def test_what_was_signed_with_an_older_key_holds_for_good(tmp_path: Path) -> None:
    path = tmp_path / "receipts.json"
    make_keys(path, new_keys(Kind.RECEIPT))
    tokens, now_ms = [], NOW_MS
    for _ in range(4):
        tokens.append(signer(path, now_ms).sign(ANNA, [upload()]))
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


def test_what_was_changed_or_signed_by_others_proves_nothing() -> None:
    made, other = signer(), signer()
    token = made.sign(ANNA, [upload()])
    head, body, signature = token.split(".")
    keys = read_public_keys(public(made))
    changed = body[:-4] + ("AAAA" if body[-4:] != "AAAA" else "BBBB")
    payload = json.loads(jws.extract_compact(token.encode()).payload)
    payload["uploads"][0]["num"] = [[1, 99]]
    forged = encode64(json.dumps(payload).encode())
    for text in (
        other.sign(ANNA, [upload()]),
        f"{head}.{forged}.{signature}",
        f"{head}.{body}.{encode64(bytes(64))}",
        f"{head}.{body}.{encode64(b'')}",
    ):
        with pytest.raises(NotSigned):
            read_upload_receipt(text, keys)
    none = encode64(b'{"alg":"none","kid":"x","typ":"receipt+jwt"}')
    for text in ("", "x", "a.b", "a.b.c.d", f"{none}.{body}.", f"{head}.{changed}é.x", token[:40]):
        with pytest.raises(NoReceipt):
            read_upload_receipt(text, keys)


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
