"""RFC 6962's Merkle tree: hashes, roots, proofs of inclusion and of consistency. Pure.

A tree of n leaves is split at the greatest power of two below n (RFC 6962, section 2.1). So every
tree is made of perfect subtrees, and a perfect subtree is known by its level and its index on that
level: (0, i) is leaf i, (k, i) spans the leaves [i * 2**k, (i + 1) * 2**k). Whoever gives the hash
of such a subtree (`NodeReader`) gives every root and every proof; see `tiles`.
"""

from collections.abc import Callable, Sequence
from hashlib import sha256

from durabill.schemas.merkle import node_hash

HASH_BYTES = 32
EMPTY_ROOT = sha256(b"").digest()

NodeReader = Callable[[int, int], bytes]
"""Called as node(level, index): the hash of a perfect subtree."""


class ProofError(Exception):
    """A proof doesn't prove what it is presented for; the message says why."""


def perfect_hash(hashes: Sequence[bytes]) -> bytes:
    """Return the hash of a perfect subtree by those of its nodes on one level: 1, 2, 4, 8 …"""
    row = hashes
    while len(row) > 1:
        row = [
            sha256(b"\x01" + left + right).digest()
            for left, right in zip(row[::2], row[1::2], strict=True)
        ]
    return row[0]


def range_hash(node: NodeReader, start: int, end: int) -> bytes:
    """Return RFC 6962's MTH(D[start:end]); `start` is where such a subtree of a tree begins."""
    size = end - start
    if size == 0:
        return EMPTY_ROOT
    if size & (size - 1) == 0 and start % size == 0:
        return node(size.bit_length() - 1, start // size)
    middle = start + _split(size)
    return node_hash(range_hash(node, start, middle), range_hash(node, middle, end))


def inclusion_proof(node: NodeReader, index: int, size: int) -> list[bytes]:
    """Return the audit path of a leaf in the tree of `size`, from the leaf up."""
    assert 0 <= index < size, "the leaf is in the tree"
    path = []
    start, end = 0, size
    while end - start > 1:
        middle = start + _split(end - start)
        if index < middle:
            path.append(range_hash(node, middle, end))
            end = middle
        else:
            path.append(range_hash(node, start, middle))
            start = middle
    return path[::-1]


def consistency_proof(node: NodeReader, old_size: int, new_size: int) -> list[bytes]:
    """Return RFC 6962's proof that the tree of `old_size` is the beginning of that of `new_size`.

    It is empty where either says nothing: the old tree is empty, or both are the same.
    """
    assert 0 <= old_size <= new_size, "a log only grows"
    if old_size in (0, new_size):
        return []
    path = []
    start, end = 0, new_size
    while old_size != end:
        middle = start + _split(end - start)
        if old_size <= middle:
            path.append(range_hash(node, middle, end))
            end = middle
        else:
            path.append(range_hash(node, start, middle))
            start = middle
    if start:  # else the verifier knows this hash: it is the old root
        path.append(range_hash(node, start, end))
    return path[::-1]


def verify_inclusion(
    leaf: bytes, index: int, size: int, proof: Sequence[bytes], root: bytes
) -> None:
    """Raise ProofError unless the proof leads from a leaf's hash, at `index`, to the root."""
    if not 0 <= index < size:
        raise ProofError(f"there is no leaf {index} in a tree of {size}")
    _check_hashes([leaf, root, *proof])
    at, last, found = index, size - 1, leaf
    for sibling in proof:
        if last == 0:
            raise ProofError("the proof is too long")
        if at & 1 or at == last:
            found = node_hash(sibling, found)
            while at and not at & 1:
                at, last = at >> 1, last >> 1
        else:
            found = node_hash(found, sibling)
        at, last = at >> 1, last >> 1
    if last:
        raise ProofError("the proof is too short")
    if found != root:
        raise ProofError("the proof leads to another root")


def verify_consistency(
    old_size: int, new_size: int, proof: Sequence[bytes], old_root: bytes, new_root: bytes
) -> None:
    """Raise ProofError unless the proof shows that the new tree begins with the old one."""
    if not 0 <= old_size <= new_size:
        raise ProofError(f"a log of {old_size} leaves can't have shrunk to {new_size}")
    _check_hashes([old_root, new_root, *proof])
    if old_size in (0, new_size):
        if proof:
            raise ProofError("the proof is too long")
        if old_root != (new_root if old_size else EMPTY_ROOT):
            raise ProofError("trees of the same size have different roots")
        return
    if not proof:
        raise ProofError("the proof is too short")
    at, last = old_size - 1, new_size - 1
    while at & 1:
        at, last = at >> 1, last >> 1
    path = list(proof) if at else [old_root, *proof]
    old = new = path[0]
    for sibling in path[1:]:
        if last == 0:
            raise ProofError("the proof is too long")
        if at & 1 or at == last:
            old, new = node_hash(sibling, old), node_hash(sibling, new)
            while at and not at & 1:
                at, last = at >> 1, last >> 1
        else:
            new = node_hash(new, sibling)
        at, last = at >> 1, last >> 1
    if last:
        raise ProofError("the proof is too short")
    if old != old_root:
        raise ProofError("the proof leads to another old root")
    if new != new_root:
        raise ProofError("the proof leads to another new root")


def _split(size: int) -> int:
    """Return the greatest power of two below `size`."""
    return 1 << ((size - 1).bit_length() - 1)


def _check_hashes(hashes: Sequence[bytes]) -> None:
    if any(len(each) != HASH_BYTES for each in hashes):
        raise ProofError(f"a hash has not {HASH_BYTES} bytes")
