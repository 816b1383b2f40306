"""The hashes of Merkle trees: RFC 9162, section 2.1.1, as RFC 6962 before it."""

from hashlib import sha256


def leaf_hash(entry: bytes) -> bytes:
    """Return the hash of a leaf."""
    return sha256(b"\x00" + entry).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """Return the hash of a node by those of its children."""
    return sha256(b"\x01" + left + right).digest()
