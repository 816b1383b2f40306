"""Receipts: one order's total, its place in the sealed log, and the signed checkpoint.

A receipt is one text file in two parts. The first is for people; the second, from the line
`c2sp.org/tlog-proof@v1` on, is a proof in C2SP's tlog-proof format, which any tool for that format
reads. Its `extra` line has the total's exact bytes. The first part follows from the second, so an
altered one is found. A file without the first part is a receipt as well.
"""

import base64
import binascii
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from durabill.schemas import BadTotal, OrderTotal, decode_total
from durabill.schemas.merkle import leaf_hash
from durabill.schemas.text import shown
from durabill.stream_processors.audit.seal.checkpoints import Checkpoint, parse_checkpoint
from durabill.stream_processors.audit.seal.entries import entry_of
from durabill.stream_processors.audit.seal.errors import NotVerified, Unreadable
from durabill.stream_processors.audit.seal.merkle import HASH_BYTES, ProofError, verify_inclusion
from durabill.stream_processors.audit.seal.notes import PublicKey, parse_note

PROOF_HEAD = "c2sp.org/tlog-proof@v1"
_HEAD = "Durabill receipt 1"
_PROOF_HASHES_MAX = 64
_YEAR_9999_S = 253_402_300_799
_INDEX = re.compile(r"index (0|[1-9]\d{0,18})")


@dataclass(frozen=True, slots=True)
class Receipt:
    """A receipt as it was read: nothing of it is proven before `verify` has said so."""

    value: bytes
    index: int
    proof: tuple[bytes, ...]
    note: str
    for_people: str

    def text(self) -> str:
        """Return the whole file."""
        return self.for_people + self.proof_text()

    def proof_text(self) -> str:
        """Return the part in the tlog-proof format."""
        lines = [
            PROOF_HEAD,
            f"extra {_encoded(self.value)}",
            f"index {self.index}",
            *map(_encoded, self.proof),
        ]
        return "".join(f"{line}\n" for line in lines) + "\n" + self.note


@dataclass(frozen=True, slots=True)
class Verified:
    """What a receipt proves: the total, where it is sealed, by whose signature."""

    total: OrderTotal
    index: int
    checkpoint: Checkpoint
    signer: PublicKey


def make_receipt(value: bytes, index: int, proof: Sequence[bytes], note: str) -> Receipt:
    """Return the receipt of a record of the totals topic. Raises Unreadable where it is no total.

    It doesn't check the proof: `verify` does.
    """
    checkpoint = parse_checkpoint(parse_note(note).text)
    people = describe(_total(value), index, checkpoint)
    return Receipt(value, index, tuple(proof), note, people)


def read_receipt(data: bytes) -> Receipt:
    """Return what a file holds. Raises Unreadable where it is no receipt, or is cut off."""
    try:
        text = data.replace(b"\r\n", b"\n").decode()  # as mail may have it
    except UnicodeDecodeError as error:
        raise Unreadable("it is no receipt: it is no text") from error
    start = 0 if text.startswith(PROOF_HEAD + "\n") else text.find(f"\n{PROOF_HEAD}\n") + 1
    if not text.startswith(PROOF_HEAD + "\n", start):
        raise Unreadable(f"it is no receipt: it has no line {PROOF_HEAD}")
    head, blank, note = text[start:].partition("\n\n")
    lines = head.split("\n")[1:]
    if not blank or len(lines) < 2 or not lines[0].startswith("extra "):
        raise Unreadable("the receipt is cut off, or isn't one of a total")
    index = _INDEX.fullmatch(lines[1])
    if index is None or len(lines) > 2 + _PROOF_HASHES_MAX:
        raise Unreadable("the receipt's index or proof can't be read")
    value = _decoded(lines[0].removeprefix("extra "))
    proof = tuple(map(_decoded, lines[2:]))
    if any(len(each) != HASH_BYTES for each in proof):
        raise Unreadable("the receipt's proof can't be read")
    parse_note(note)
    return Receipt(value, int(index[1]), proof, note, text[:start])


def verify(receipt: Receipt, keys: Iterable[PublicKey], order: str | None = None) -> Verified:
    """Return what a receipt proves. Raises NotVerified, which says what is wrong, and Unreadable.

    `keys` are those that are trusted; `order` is the order that the receipt has to be of.
    """
    parsed = parse_note(receipt.note)
    signer = parsed.signer(keys)
    checkpoint = parse_checkpoint(parsed.text)
    try:
        leaf = leaf_hash(entry_of(receipt.value))
        verify_inclusion(leaf, receipt.index, checkpoint.size, receipt.proof, checkpoint.root)
    except ProofError as error:
        raise NotVerified(
            f"the total isn't leaf {receipt.index} of the signed log: {error}. The total, the index"
            " or the proof was altered"
        ) from error
    total = _total(receipt.value)
    people = describe(total, receipt.index, checkpoint)
    if receipt.for_people not in ("", people):
        line = _first_difference(receipt.for_people, people)
        raise NotVerified(
            f"the text above the proof was altered; what is proven says: {line or '(no such line)'}"
        )
    if order is not None and total.service_order_number != order:
        number = shown(total.service_order_number)
        raise NotVerified(f"it is a receipt of order {number}, not of {shown(order)}")
    return Verified(total, receipt.index, checkpoint, signer)


def describe(total: OrderTotal, index: int, checkpoint: Checkpoint) -> str:
    """Return a receipt's first part: what it is of, for people."""
    origin = checkpoint.origin
    upper = "unknown" if total.upper_bound_ms is None else _duration(total.upper_bound_ms)
    rows = {
        "Service order number": shown(total.service_order_number),
        "Revision": str(total.revision),
        "Status": total.status.value,
        "Duration": _duration(total.duration_ms),
        "At most": upper,
        "Started": _instant(total.started_ms),
        "Ended": _instant(total.ended_ms),
        "Settled": _instant(total.settled_at_ms),
        "Intervals": str(len(total.intervals)),
        "Segments": str(total.segments),
        "End number": "none" if total.end_number is None else str(total.end_number),
        "Missing numbers": ", ".join(f"{a}-{b}" for a, b in total.missing_numbers) or "none",
        "Evidence": f"{total.digest} (SHA-256)",
        "Totals topic": f"{origin.topic}, partition {origin.partition}",
        "Sealed as": f"record {index} of a log of {checkpoint.size}",
    }
    lines = [f"{name + ':':22}{text}" for name, text in rows.items()]
    return "\n".join([_HEAD, "", *lines, "", ""])


def _duration(duration_ms: int) -> str:
    seconds, ms = divmod(duration_ms, 1000)
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min {seconds:02}.{ms:03} s ({duration_ms} ms)"


def _instant(epoch_ms: int) -> str:
    seconds, ms = divmod(epoch_ms, 1000)
    if not 0 <= seconds <= _YEAR_9999_S:
        return f"{epoch_ms} ms since 1970-01-01 UTC"
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M:%S}.{ms:03} UTC ({epoch_ms} ms)"


def _first_difference(given: str, right: str) -> str:
    ours = right.split("\n")
    for at, line in enumerate(given.split("\n")):
        if at >= len(ours) or line != ours[at]:
            return ours[at] if at < len(ours) else ""
    return ""


def _total(value: bytes) -> OrderTotal:
    try:
        return decode_total(value)
    except BadTotal as error:
        raise Unreadable(f"the sealed record is no total: {error}") from error


def _encoded(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _decoded(text: str) -> bytes:
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise Unreadable("the receipt can't be read: a line is no base64") from error
    if _encoded(data) != text:
        raise Unreadable("the receipt can't be read: a line is no base64")
    return data
