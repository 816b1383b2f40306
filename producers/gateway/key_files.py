"""Files of the keys that the gateway signs leases and receipts with: JWK sets of mode 600.

Theory: several gateways share one file, or have copies of it. A new key is written ahead of its
time (`signs_from_ms`): every gateway knows it, and takes what it has signed, before the first of
them signs with it. So nobody refuses what another gateway has signed, and none has to be restarted:
a gateway looks at the file once a second, and at once where it meets a key that it doesn't know. A
file that has become unreadable changes nothing but the log; what was read last goes on.

    {"keys": [{"kid": "…", "kty": "oct", "alg": "HS256", "k": "…", "signs_from_ms": 0}, …],
     "number_secret": "…"}                                                            leases
    {"keys": [{"kid": "…", "kty": "OKP", "crv": "Ed25519", "x": "…", "d": "…", …}, …]}  receipts

The newest key stands first. A file of leases has two keys at most, for a lease that nobody can
check is worth nothing; a file of receipts keeps the public half of every key that ever signed.
"""

import base64
import binascii
import logging
import os
import stat
import tempfile
import time
from collections.abc import Callable, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Final

import msgspec

from durabill.producers.gateway.damping import Damper
from durabill.schemas.errors import DurabillError

log = logging.getLogger(__name__)

SECRET_BYTES: Final = 32
HAND_OVER_MS: Final = 60_000
"""How long a new key is in the file before it signs; a gateway has read it after a second or two.
More where copies of the file have to get to other machines."""
LEASE_KEYS_MAX: Final = 2
_FILE_BYTES_MAX = 1_000_000
_LOOK_S = 1.0
_LOOK_AT_UNKNOWN_S = 0.1
_KID_BYTES = 6


class SigningKeyError(DurabillError):
    """A file of signing keys can't be used, or made; the message says what to do."""

    exit_code = 2


class Kind(StrEnum):
    """What a file's keys sign."""

    LEASE = "lease"
    RECEIPT = "receipt"


class Jwk(msgspec.Struct, frozen=True, omit_defaults=True):
    """One key (RFC 7517, RFC 8037), and from when on it signs. Its text shows no secret."""

    kid: str
    kty: str
    alg: str
    use: str = ""
    crv: str = ""
    x: str = ""
    k: str = ""
    d: str = ""
    signs_from_ms: int = 0

    def __repr__(self) -> str:
        return f"Jwk({self.kid})"


class KeySet(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a file holds, the newest key first. `number_secret` makes numbers of repeated starts."""

    keys: tuple[Jwk, ...]
    number_secret: str = ""

    def __repr__(self) -> str:
        return f"KeySet({', '.join(each.kid for each in self.keys)})"

    def signer(self, now_ms: int) -> Jwk:
        """Return the key that signs now: the newest one whose time has come."""
        able = [each for each in self.keys if each.k or each.d]
        come = [each for each in able if each.signs_from_ms <= now_ms]
        if come:
            return max(come, key=lambda each: each.signs_from_ms)
        return min(able, key=lambda each: each.signs_from_ms)  # by a clock that is far behind

    @property
    def kind(self) -> Kind:
        """Return what they sign."""
        return Kind.LEASE if self.keys[0].kty == "oct" else Kind.RECEIPT


class ReceiptKey(msgspec.Struct):
    """The public half of a key that receipts are signed with (RFC 8037)."""

    kid: str
    kty: str
    crv: str
    alg: str
    use: str
    x: str


class ReceiptKeys(msgspec.Struct):
    """All such keys, those that have signed and those that will: a JWK set (RFC 7517)."""

    keys: list[ReceiptKey]


def public_keys_of(keys: KeySet) -> ReceiptKeys:
    """Return the public halves of all keys of receipts, the newest first."""
    assert keys.kind is Kind.RECEIPT, "keys of leases have no public half"
    return ReceiptKeys(
        [ReceiptKey(each.kid, each.kty, each.crv, each.alg, each.use, each.x) for each in keys.keys]
    )


def encode64(data: bytes) -> str:
    """Return bytes in base64url without padding, as JOSE has it."""
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def decode64(text: str) -> bytes:
    """Return the bytes of such a text; raise ValueError for others."""
    try:
        data = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except binascii.Error as error:
        raise ValueError("no base64url") from error
    if encode64(data) != text:
        raise ValueError("no base64url in the one form that it has")
    return data


def new_key(kind: Kind, signs_from_ms: int, entropy: Callable[[int], bytes]) -> Jwk:
    """Return a new key."""
    kid, secret = entropy(_KID_BYTES).hex(), entropy(SECRET_BYTES)
    if kind is Kind.LEASE:
        return Jwk(kid, "oct", "HS256", k=encode64(secret), signs_from_ms=signs_from_ms)
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    public = Ed25519PrivateKey.from_private_bytes(secret).public_key().public_bytes_raw()
    return Jwk(
        kid,
        "OKP",
        "Ed25519",
        use="sig",
        crv="Ed25519",
        x=encode64(public),
        d=encode64(secret),
        signs_from_ms=signs_from_ms,
    )


def new_keys(kind: Kind, entropy: Callable[[int], bytes] = os.urandom) -> KeySet:
    """Return what a new file has."""
    secret = encode64(entropy(SECRET_BYTES)) if kind is Kind.LEASE else ""
    return KeySet((new_key(kind, 0, entropy),), secret)


def rotated(
    before: KeySet,
    now_ms: int,
    *,
    keep_ms: int = 0,
    hand_over_ms: int = HAND_OVER_MS,
    entropy: Callable[[int], bytes] = os.urandom,
) -> KeySet:
    """Return the keys with a new one, which signs `hand_over_ms` from now on.

    Of leases the two newest are left. Raises SigningKeyError where the one that would go may have
    signed something that is still good, which is so for `keep_ms` after it signed last.
    """
    newest = before.keys[0]
    if newest.signs_from_ms > now_ms:
        raise SigningKeyError(
            f"the newest key doesn't sign yet, but in {newest.signs_from_ms - now_ms} ms: wait"
        )
    new = new_key(before.kind, now_ms + hand_over_ms, entropy)
    if before.kind is Kind.RECEIPT:
        older = (msgspec.structs.replace(each, d="") for each in before.keys[1:])
        return KeySet((new, newest, *older))
    left_ms = newest.signs_from_ms + keep_ms - now_ms
    if len(before.keys) >= LEASE_KEYS_MAX and left_ms > 0:
        raise SigningKeyError(
            f"key {before.keys[1].kid} has signed leases that hold for {left_ms / 1000:,.0f} s more"
            f" (DURABILL_LEASE_S={keep_ms / 1000:g}), and there are {LEASE_KEYS_MAX} keys at most:"
            " wait, or give --force where the key must go now; clients that hold its leases have"
            " to start their orders anew then"
        )
    return KeySet((new, newest), before.number_secret)


def read_keys(path: Path, kind: Kind) -> KeySet:
    """Return what a file holds. Raises SigningKeyError unless it is right and private."""
    try:
        with path.open("rb") as file:
            found = os.fstat(file.fileno())
            content = file.read(_FILE_BYTES_MAX)
    except OSError as error:
        hint = f"; durabill keys make {path} --kind {kind} makes one"
        hint = hint if isinstance(error, FileNotFoundError) else ""
        why = f"the key file {path} can't be read: {error.strerror}{hint}"
        raise SigningKeyError(why) from error
    if found.st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise SigningKeyError(
            f"others can read the key file {path} (mode {stat.S_IMODE(found.st_mode):03o}): whoever"
            f" has read it can sign in the gateway's name. If nobody has: chmod 600 {path}; else"
            f" durabill keys rotate {path}"
        )
    try:
        keys = msgspec.json.decode(content, type=KeySet)
        _check(keys, kind)
    except (msgspec.DecodeError, ValueError) as error:
        # Not the error's own text: it may repeat a part of the file.
        raise SigningKeyError(f"{path} is no file of {kind} keys") from error
    return keys


def _check(keys: KeySet, kind: Kind) -> None:
    """Raise ValueError unless they are whole keys of that kind."""
    kids = {each.kid for each in keys.keys}
    if not keys.keys or len(kids) < len(keys.keys) or not all(_is_kid(each) for each in kids):
        raise ValueError("each key has a kid of its own")
    for each in keys.keys:
        wanted = ("oct", "HS256") if kind is Kind.LEASE else ("OKP", "Ed25519")
        if (each.kty, each.alg) != wanted:
            raise ValueError("keys of another kind")
        secret, public = decode64(each.k or each.d), decode64(each.x)
        if len(secret) != SECRET_BYTES and (kind is Kind.LEASE or secret):
            raise ValueError("a secret of another length")
        if kind is Kind.RECEIPT and len(public) != SECRET_BYTES:
            raise ValueError("a public key of another length")
    if kind is Kind.LEASE and len(decode64(keys.number_secret)) != SECRET_BYTES:
        raise ValueError("no secret for numbers")
    keys.signer(0)  # ValueError where none can sign


def _is_kid(text: str) -> bool:
    return 1 <= len(text) <= 64 and text.isascii() and text.isalnum()


def make_keys(path: Path, keys: KeySet) -> bool:
    """Write a new file, for its owner alone; tell whether it is ours, not one that was there.

    It is there whole or not at all, so two processes that begin at once agree on one. Raises
    SigningKeyError.
    """
    try:
        draft = _draft(path, keys)
        try:
            os.link(draft, path)
        finally:
            os.unlink(draft)
    except FileExistsError:
        return False
    except OSError as error:
        raise SigningKeyError(f"the key file {path} can't be made: {error.strerror}") from error
    return True


def replace_keys(path: Path, keys: KeySet) -> None:
    """Put other keys into a file; whoever reads it meets the old ones or the new ones."""
    try:
        draft = _draft(path, keys)
        try:
            os.replace(draft, path)
        except OSError:
            os.unlink(draft)
            raise
    except OSError as error:
        raise SigningKeyError(f"the key file {path} can't be changed: {error.strerror}") from error


def _draft(path: Path, keys: KeySet) -> str:
    handle, draft = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")  # of mode 600
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(msgspec.json.format(msgspec.json.encode(keys), indent=1) + b"\n")
            file.flush()
            os.fsync(handle)
    except BaseException:
        os.unlink(draft)
        raise
    return draft


class WatchedKeys:
    """The keys of a file, as of now: it is looked at again and again. Raises SigningKeyError.

    Without a file they are made up, and known to this process alone.
    """

    def __init__(
        self, path: Path | None, kind: Kind, monotonic_s: Callable[[], float] = time.monotonic
    ) -> None:
        self._path, self._kind, self._monotonic_s = path, kind, monotonic_s
        self._damper = Damper(log)
        self._looked_s = monotonic_s()
        self._seen = self._sign()
        self.keys = new_keys(kind) if path is None else read_keys(path, kind)

    def look(self, *, meets_unknown: bool = False) -> bool:
        """Read the file again where it has changed; tell whether there are other keys now.

        It is looked at once a second, and ten times a second where a key is met that isn't known:
        whoever sends tokens of keys that don't exist costs no more than that.
        """
        now_s = self._monotonic_s()
        pause_s = _LOOK_AT_UNKNOWN_S if meets_unknown else _LOOK_S
        if 0 <= now_s - self._looked_s < pause_s:
            return False
        self._looked_s = now_s
        sign = self._sign()
        if sign == self._seen or self._path is None:
            return False
        try:
            keys = read_keys(self._path, self._kind)
        except SigningKeyError as error:
            text = "%s; the keys that were read before hold on"
            self._damper.warning(str(self._path), text, error)
            return False
        self._seen = sign
        if keys == self.keys:
            return False
        self.keys = keys
        log.info("%s keys have changed: %s", self._kind, _kids(keys.keys))
        return True

    def _sign(self) -> tuple[int, int, int] | None:
        """Return what is another after each change of the file."""
        if self._path is None:
            return None
        try:
            found = self._path.stat()
        except OSError:
            return None
        return found.st_mtime_ns, found.st_size, found.st_ino


def _kids(keys: Sequence[Jwk]) -> str:
    return ", ".join(each.kid for each in keys)


def ensure_keys(path: Path, kind: Kind) -> None:
    """Make a file with a new key where there is none. Raises SigningKeyError."""
    if not path.exists() and make_keys(path, new_keys(kind)):
        log.info("made %s, with a new key that signs %ss", path, kind)
