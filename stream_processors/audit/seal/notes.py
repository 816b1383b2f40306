"""Signed notes in C2SP's format, with Ed25519 keys: text that anybody can check.

A note is its text, an empty line, and a line for each signature: `— NAME BASE64`. The base64 has
four bytes by which the key is found, and the signature of the text. A key is written as Go's
`sumdb/note` writes it: `NAME+HASH+BASE64` a public one, with `PRIVATE+KEY+` before it a private
one.
"""

import base64
import binascii
import re
from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import sha256

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from durabill.stream_processors.audit.seal.errors import KeyFileError, NotVerified, Unreadable

PRIVATE = "PRIVATE+KEY+"
_ED25519 = b"\x01"
_KEY_BYTES = 32
_SIGNATURES_MAX = 64
_NAME = re.compile(r"[^\s+]{1,200}")
_LINE = re.compile(r"— ([^\s+]+) ([A-Za-z0-9+/]+={0,2})")


@dataclass(frozen=True, slots=True)
class PublicKey:
    """A key by which notes are checked."""

    name: str
    raw: bytes

    @property
    def key_id(self) -> bytes:
        """Return the four bytes by which a signature says whose it is."""
        return sha256(self.name.encode() + b"\n" + _ED25519 + self.raw).digest()[:4]

    def __str__(self) -> str:
        encoded = base64.b64encode(_ED25519 + self.raw).decode()
        return f"{self.name}+{self.key_id.hex()}+{encoded}"

    def has_signed(self, text: str, signature: bytes) -> bool:
        """Tell whether a signature of the text is this key's."""
        try:
            Ed25519PublicKey.from_public_bytes(self.raw).verify(signature, text.encode())
        except InvalidSignature:
            return False
        return True


class PrivateKey:
    """A key that signs; its text shows the public half alone."""

    def __init__(self, name: str, seed: bytes) -> None:
        self._key = Ed25519PrivateKey.from_private_bytes(seed)
        self.public = PublicKey(name, self._key.public_key().public_bytes_raw())

    def __repr__(self) -> str:
        return f"PrivateKey of {self.public}"

    def encoded(self) -> str:
        """Return the key as a key file has it: a secret."""
        public = self.public
        seed = base64.b64encode(_ED25519 + self._key.private_bytes_raw()).decode()
        return f"{PRIVATE}{public.name}+{public.key_id.hex()}+{seed}"

    def line(self, text: str) -> str:
        """Return the line that signs a text."""
        signature = self.public.key_id + self._key.sign(text.encode())
        return f"— {self.public.name} {base64.b64encode(signature).decode()}\n"


def sign(text: str, *keys: PrivateKey) -> str:
    """Return the note of a text, which ends with a line feed, signed by the keys."""
    assert text.endswith("\n"), "a note's text ends with a line feed"
    return text + "\n" + "".join(key.line(text) for key in keys)


@dataclass(frozen=True, slots=True)
class Note:
    """A note as it was read: nothing of it is proven before `signer` has said so."""

    text: str
    signatures: tuple[tuple[str, bytes, bytes], ...]
    """(name, key id, signature) of each."""

    def signer(self, keys: Iterable[PublicKey]) -> PublicKey:
        """Return that one of the keys which signed this. Raises NotVerified where none did."""
        known = {(key.name, key.key_id): key for key in keys}
        valid = None
        for name, key_id, signature in self.signatures:
            key = known.get((name, key_id))
            if key is None:
                continue
            if not key.has_signed(self.text, signature):
                raise NotVerified(
                    f"the signature of {name}+{key_id.hex()} is wrong: the signed text was altered,"
                    " or the signature was"
                )
            valid = valid or key
        if valid is None:
            signed = ", ".join(f"{name}+{key_id.hex()}" for name, key_id, _ in self.signatures)
            given = ", ".join(f"{name}+{key_id.hex()}" for name, key_id in known)
            raise NotVerified(f"it is signed by {signed}, not by {given}: the wrong key, or a fake")
        return valid


def parse_note(note: str) -> Note:
    """Return a note's text and signatures. Raises Unreadable."""
    text, blank, lines = note.rpartition("\n\n")
    if not blank or not lines.endswith("\n") or any(c < " " and c != "\n" for c in note):
        raise Unreadable("it is no signed note: a text, an empty line, lines of signatures")
    signatures: list[tuple[str, bytes, bytes]] = []
    for line in lines.removesuffix("\n").split("\n"):
        found = _LINE.fullmatch(line)
        if found is None or len(signatures) == _SIGNATURES_MAX:
            raise Unreadable("it is no signed note: a line of signatures can't be read")
        raw = _decoded(found[2])
        if raw is None or len(raw) < 5:
            raise Unreadable("it is no signed note: a signature can't be read")
        signatures.append((found[1], raw[:4], raw[4:]))
    return Note(text + "\n", tuple(signatures))


def parse_public(text: str) -> PublicKey:
    """Return a public key by its text, `NAME+HASH+BASE64`. Raises KeyFileError."""
    name, key_id, raw = _parts(text.strip(), "a public key is NAME+HASH+BASE64, in one line")
    key = PublicKey(name, raw)
    if key.key_id.hex() != key_id:
        raise KeyFileError("the public key's hash doesn't fit the key: a character is wrong")
    return key


def parse_private(text: str) -> PrivateKey:
    """Return a private key by its text. Raises KeyFileError, which tells nothing of the text."""
    what = f"the first line of a key file is {PRIVATE}NAME+HASH+BASE64"
    if not text.startswith(PRIVATE):
        raise KeyFileError(what)
    name, key_id, raw = _parts(text.removeprefix(PRIVATE).strip(), what)
    key = PrivateKey(name, raw)
    if key.public.key_id.hex() != key_id:
        raise KeyFileError("the private key's hash doesn't fit the key: a character is wrong")
    return key


def is_name(name: str) -> bool:
    """Tell whether a key may have this name: no blanks, no plus."""
    return _NAME.fullmatch(name) is not None and name.isprintable()


def _parts(text: str, what: str) -> tuple[str, str, bytes]:
    name, _, rest = text.partition("+")
    key_id, _, encoded = rest.partition("+")
    raw = _decoded(encoded)
    if not is_name(name) or raw is None or raw[:1] != _ED25519 or len(raw) != 1 + _KEY_BYTES:
        raise KeyFileError(what)
    return name, key_id, raw[1:]


def _decoded(text: str) -> bytes | None:
    try:
        raw = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return None
    return raw if base64.b64encode(raw).decode() == text else None
