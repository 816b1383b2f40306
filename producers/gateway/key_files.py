"""Files of the keys that the gateway signs leases and receipts with: JWK sets of mode 600.

Theory: several gateways share one file, or have copies of it; how a key takes over, `key_sets`
says. None has to be restarted for it: a gateway looks at the file once a second, and at once where
it meets a key that it doesn't know. A file that has become unreadable changes nothing but the log;
what was read last goes on.

    {"keys": [{"kid": "…", "kty": "oct", "alg": "HS256", "k": "…", "signs_from_ms": 0}, …],
     "number_secret": "…"}                                                            leases
    {"keys": [{"kid": "…", "kty": "OKP", "crv": "Ed25519", "x": "…", "d": "…", …}, …]}  receipts
"""

import logging
import os
import stat
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from durabill.producers.gateway.auth.watched_file import without_waiting
from durabill.producers.gateway.damping import Damper
from durabill.producers.gateway.key_sets import (
    Jwk,
    KeySet,
    Kind,
    SigningKeyError,
    check_keys,
    new_keys,
)

log = logging.getLogger(__name__)

_FILE_BYTES_MAX = 1_000_000
_LOOK_S = 1.0
_LOOK_AT_UNKNOWN_S = 0.1


def read_keys(path: Path, kind: Kind) -> KeySet:
    """Return what a file holds. Raises SigningKeyError unless it is right and private."""
    try:
        with open(path, "rb", opener=without_waiting) as file:
            found = os.fstat(file.fileno())
            content = file.read(_FILE_BYTES_MAX) if stat.S_ISREG(found.st_mode) else b""
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
        check_keys(keys, kind)
    except (ValueError, RecursionError) as error:
        # Not the error's own text: it may repeat a part of the file.
        raise SigningKeyError(
            f"{path} is no file of {kind} keys, or is damaged: put a copy of the right one there,"
            f" or name another, which durabill keys make FILE --kind {kind} makes"
        ) from error
    return keys


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
