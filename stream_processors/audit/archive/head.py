"""The signed head of an archive's manifest: how many entries there are, and the root over them.

The entries are the leaves of a Merkle log (RFC 6962), and the head is a signed note in the form of
C2SP's tlog-checkpoint: origin, size, root. Everybody can compute a chain of digests anew after
changing or cutting it; nobody without the key can sign its head. Whoever has kept a head can show
that a later manifest doesn't begin with what was signed then, even to the key's owner.
"""

import base64
import binascii
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from durabill.schemas.merkle import leaf_hash
from durabill.stream_processors.audit.archive.manifest import ArchiveOf
from durabill.stream_processors.audit.seal.errors import Unreadable
from durabill.stream_processors.audit.seal.merkle import perfect_hash, range_hash
from durabill.stream_processors.audit.seal.notes import (
    PrivateKey,
    PublicKey,
    parse_note,
    sign,
)


class Head(NamedTuple):
    """What a head says; nothing of it is proven by that."""

    origin: str
    size: int
    root: bytes

    def text(self) -> str:
        """Return the text that is signed."""
        return f"{self.origin}\n{self.size}\n{base64.b64encode(self.root).decode()}\n"


def origin_of(of: ArchiveOf) -> str:
    """Return the name of an archive's log, by which no head of another one fits."""
    return f"durabill-archive/{of.cluster_id}/{of.topic}/{of.topic_id}"


def head_of(of: ArchiveOf, lines: Sequence[bytes]) -> Head:
    """Return the head of a manifest with these entries."""
    hashes = [leaf_hash(line) for line in lines]

    def node(level: int, index: int) -> bytes:
        return perfect_hash(hashes[index << level : (index + 1) << level])

    return Head(origin_of(of), len(lines), range_hash(node, 0, len(lines)))


def signed_head(of: ArchiveOf, lines: Sequence[bytes], keys: Iterable[PrivateKey]) -> str:
    """Return the signed note of a manifest's head."""
    return sign(head_of(of, lines).text(), *keys)


def read_head(note: str, keys: Iterable[PublicKey]) -> Head:
    """Return what a signed head says; raise Unreadable, or NotVerified where no key signed it."""
    parsed = parse_note(note)
    parsed.signer(keys)
    lines = parsed.text.split("\n")
    try:
        origin, size, root, _ = lines
        head = Head(origin, int(size), base64.b64decode(root, validate=True))
    except (ValueError, binascii.Error) as error:
        raise Unreadable("it is no head of an archive: origin, size, root") from error
    if head.text() != parsed.text:
        raise Unreadable("it is no head of an archive, as we write them")
    return head


def contradictions(head: Head, of: ArchiveOf, lines: Sequence[bytes]) -> list[tuple[str, str, str]]:
    """Return where a manifest isn't what a head says it began with: (what, expected, found)."""
    if head.origin != origin_of(of):
        return [("origin", head.origin, origin_of(of))]
    if head.size > len(lines):
        return [("entries", f"at least {head.size}, which are signed", str(len(lines)))]
    root = head_of(of, lines[: head.size]).root
    if root != head.root:
        what = f"root of the first {head.size} entries"
        return [(what, base64.b64encode(head.root).decode(), base64.b64encode(root).decode())]
    return []
