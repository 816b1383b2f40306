"""The files of keys that `durabill keys` makes and changes: of the seal, of leases, of receipts."""

import time
from enum import StrEnum
from pathlib import Path
from typing import Any, NamedTuple


class KeyKind(StrEnum):
    """What a file's keys sign."""

    SEAL = "seal"
    LEASE = "lease"
    RECEIPT = "receipt"


class KeysTold(NamedTuple):
    """What to say of a file: for programs, and its public part, "" where it has none."""

    fields: dict[str, Any]
    public: str


def kind_of(file: Path) -> KeyKind:
    """Return what the keys of a file sign, by its form; one that can't be read may be a seal's."""
    try:
        with file.open("rb") as opened:
            start = opened.read(100_000)
    except OSError:
        return KeyKind.SEAL
    if not start.lstrip().startswith(b"{"):
        return KeyKind.SEAL
    return KeyKind.LEASE if b'"oct"' in start else KeyKind.RECEIPT


def make_file(file: Path, kind: KeyKind, name: str) -> KeysTold:
    """Make a file with a new key. Raises DurabillError where there is one already."""
    if kind is KeyKind.SEAL:
        from durabill.stream_processors.audit.seal.keys import make_key_file

        return _of_seal(file, str(make_key_file(file, name)))
    from durabill.producers.gateway.key_files import make_keys
    from durabill.producers.gateway.key_sets import Kind, SigningKeyError, new_keys

    keys = new_keys(Kind(kind))
    if not make_keys(file, keys):
        why = "is there already: a key is never overwritten; give another name, or keys rotate"
        raise SigningKeyError(f"{file} {why}")
    return _of_gateway(file, keys)


def public_of(file: Path) -> KeysTold:
    """Return the public keys of a file. Raises DurabillError for one of leases, which has none."""
    kind = kind_of(file)
    if kind is KeyKind.SEAL:
        from durabill.stream_processors.audit.seal.keys import read_key_file

        found = read_key_file(file)
        key = str(found.key.public)
        before = [str(each) for each in found.trusted[1:]]
        return KeysTold({"public_key": key, "earlier_public_keys": before}, key)
    from durabill.producers.gateway.key_files import read_keys
    from durabill.producers.gateway.key_sets import Kind, SigningKeyError

    if kind is KeyKind.LEASE:
        raise SigningKeyError(
            f"{file} has keys of leases: they are secret, and have no public half"
        )
    return _of_gateway(file, read_keys(file, Kind.RECEIPT))


def rotate_file(old: Path, new: Path | None, *, lease_s: float, force: bool) -> KeysTold:
    """Make a new key, in a new file for the seal, else in the same one. Raises DurabillError."""
    kind = kind_of(old)
    if kind is KeyKind.SEAL:
        from durabill.stream_processors.audit.seal.errors import KeyFileError
        from durabill.stream_processors.audit.seal.keys import rotate_key_file

        if new is None:
            raise KeyFileError(f"name the new file too: durabill keys rotate {old} NEW")
        return _of_seal(new, str(rotate_key_file(old, new)))
    from durabill.producers.gateway.key_files import read_keys, replace_keys
    from durabill.producers.gateway.key_sets import Kind, SigningKeyError, rotated

    if new is not None:
        hint = f"durabill keys rotate {old}"
        raise SigningKeyError(f"keys of {kind}s are changed in their own file: {hint}")
    now_ms = time.time_ns() // 1_000_000
    keep_ms = 0 if force else round(lease_s * 1000)
    keys = rotated(read_keys(old, Kind(kind)), now_ms, keep_ms=keep_ms)
    replace_keys(old, keys)
    told = _of_gateway(old, keys)
    told.fields["signs_from_ms"] = keys.keys[0].signs_from_ms
    return told


def _of_seal(file: Path, public: str) -> KeysTold:
    return KeysTold({"key_file": str(file), "public_key": public}, public)


def _of_gateway(file: Path, keys: Any) -> KeysTold:
    import msgspec

    from durabill.producers.gateway.key_sets import Kind, public_keys_of

    fields = {"key_file": str(file), "kids": [each.kid for each in keys.keys]}
    if keys.kind is Kind.LEASE:
        return KeysTold(fields, "")
    public = public_keys_of(keys)
    fields["public_keys"] = msgspec.to_builtins(public)["keys"]
    return KeysTold(fields, msgspec.json.encode(public).decode())
