"""Key files, and how one key hands over to the next.

A key file has mode 600. Its first line is the private key; below stand the hand-overs, oldest
first, each a note that the key before and the key after have both signed:

    durabill-key-hand-over@v1
    from NAME+HASH+BASE64
    to NAME+HASH+BASE64

So whoever trusts an older key can trust the newer one, and the other way round. The hand-overs are
no secret: a sealer puts them into its folder, as `hand-overs`.
"""

import os
import stat
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from durabill.stream_processors.audit.seal.errors import KeyFileError, NotVerified, Unreadable
from durabill.stream_processors.audit.seal.notes import (
    PRIVATE,
    PrivateKey,
    PublicKey,
    is_name,
    parse_note,
    parse_private,
    parse_public,
    sign,
)

_HEAD = "durabill-key-hand-over@v1"
_END = "\n\n"
_OTHERS = stat.S_IRWXG | stat.S_IRWXO
_SEED_BYTES = 32
DEFAULT_NAME = "durabill-seal"


@dataclass(frozen=True, slots=True)
class KeyFile:
    """What a key file holds."""

    key: PrivateKey
    hand_overs: str

    @property
    def trusted(self) -> tuple[PublicKey, ...]:
        """Return the key and those before it, newest first."""
        return chain(self.key.public, self.hand_overs)


def make_key_file(path: Path, name: str = DEFAULT_NAME) -> PublicKey:
    """Make a key file with a new key, for its owner alone; return the public key.

    Raises KeyFileError where the file is there already, or the name can't be one.
    """
    key = _new_key(name)
    _write(path, key.encoded() + "\n")
    return key.public


def rotate_key_file(old: Path, new: Path) -> PublicKey:
    """Make a key file with a new key of the same name, to which the old key hands over."""
    before = read_key_file(old)
    key = _new_key(before.key.public.name)
    text = f"{_HEAD}\nfrom {before.key.public}\nto {key.public}\n"
    note = sign(text, before.key, key)
    _write(new, key.encoded() + "\n" + before.hand_overs + note + "\n")
    return key.public


def read_key_file(path: Path) -> KeyFile:
    """Return what a key file holds.

    Raises KeyFileError where it isn't there, others can read it, or it can't be understood.
    """
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            content = file.read(1_000_000).decode()
    except OSError as error:
        raise KeyFileError(f"the key file {path} can't be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise KeyFileError(f"{path} is no key file: it is no text") from error
    if mode & _OTHERS:
        raise KeyFileError(
            f"others can read the key file {path} (mode {stat.S_IMODE(mode):03o}): whoever has read"
            f" it can sign in your name. If nobody has: chmod 600 {path}; else make a new one with"
            " durabill keys make"
        )
    first, _, hand_overs = content.partition("\n")
    try:
        found = KeyFile(parse_private(first), hand_overs)
        assert found.trusted, "the key itself at least"
    except KeyFileError as error:
        raise KeyFileError(f"{path} is no key file: {error}") from error
    except (Unreadable, NotVerified) as error:
        raise KeyFileError(f"the key file {path}: its hand-overs: {error}") from error
    return found


def read_public(text: str) -> PublicKey:
    """Return a public key: the text itself, or that of the file it names. Raises KeyFileError."""
    if "+" in text and not Path(text).exists():
        return parse_public(text)
    try:
        content = Path(text).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise KeyFileError(
            f"{text!r} is no public key (NAME+HASH+BASE64), and no file with one"
        ) from error
    if content.startswith(PRIVATE):
        raise KeyFileError(f"{text} is a private key file: durabill keys public {text}")
    return parse_public(content)


def chain(key: PublicKey, hand_overs: str) -> tuple[PublicKey, ...]:
    """Return a key and all that hand-overs tie to it, in either direction.

    Raises NotVerified for a hand-over that one of its two keys hasn't signed, Unreadable.
    """
    pairs = list(_pairs(hand_overs))
    known = [key]
    for each in known:
        for old, new in pairs:
            for one, other in ((old, new), (new, old)):
                if one == each and other not in known:
                    known.append(other)
    return tuple(known)


def _pairs(hand_overs: str) -> Iterable[tuple[PublicKey, PublicKey]]:
    for note in _notes(hand_overs):
        parsed = parse_note(note)
        lines = parsed.text.split("\n")
        if len(lines) != 4 or lines[0] != _HEAD:
            raise Unreadable("a hand-over can't be read")
        try:
            old = parse_public(lines[1].removeprefix("from "))
            new = parse_public(lines[2].removeprefix("to "))
        except KeyFileError as error:
            raise Unreadable(f"a hand-over can't be read: {error}") from error
        for key in (old, new):
            parsed.signer([key])
        yield old, new


def _notes(text: str) -> Sequence[str]:
    """Return the notes of a text in which each is followed by an empty line."""
    parts = text.split(_END)
    if len(parts) % 2 != 1 or parts[-1]:
        raise Unreadable("the hand-overs are cut off")
    return [parts[at] + _END + parts[at + 1] + "\n" for at in range(0, len(parts) - 1, 2)]


def _new_key(name: str) -> PrivateKey:
    if not is_name(name):
        raise KeyFileError(f"a key's name has no blanks and no plus; {name!r} won't do")
    return PrivateKey(name, os.urandom(_SEED_BYTES))


def _write(path: Path, content: str) -> None:
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError as error:
        raise KeyFileError(
            f"{path} is there already: a key is never overwritten; give another name"
        ) from error
    except OSError as error:
        raise KeyFileError(f"the key file {path} can't be made: {error.strerror}") from error
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            os.fchmod(handle, 0o600)
            file.write(content)
            file.flush()
            os.fsync(handle)
    except OSError as error:
        path.unlink()  # a part of a key is none, and would be in the way of the next try
        raise KeyFileError(f"the key file {path} can't be made: {error.strerror}") from error
