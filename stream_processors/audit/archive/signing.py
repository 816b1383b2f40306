"""Signs an archive's manifest as it grows, and reads an archive back with the signed head."""

from collections.abc import Iterator
from pathlib import Path

from durabill.schemas.errors import DurabillError
from durabill.stream_processors.audit.archive.archiver import Archiver
from durabill.stream_processors.audit.archive.folder import (
    MANIFEST,
    READ,
    ArchiveFolder,
    ArchiveUnreadable,
    told,
)
from durabill.stream_processors.audit.archive.head import contradictions, read_head, signed_head
from durabill.stream_processors.audit.archive.manifest import ArchiveError, Manifest
from durabill.stream_processors.audit.archive.verify import (
    Progress,
    Verified,
    finding,
    verify,
)
from durabill.stream_processors.audit.findings import Finding
from durabill.stream_processors.audit.seal.errors import NotVerified, SealError, Unreadable
from durabill.stream_processors.audit.seal.keys import chain, read_key_file, read_public
from durabill.stream_processors.audit.seal.notes import PublicKey

HEAD_PLACE = f"{MANIFEST}/head"


class Signer:
    """Signs an archive's head with the key in a file; raises KeyFileError where that is none."""

    def __init__(self, folder: ArchiveFolder, key_file: Path) -> None:
        self._folder = folder
        self._keys = read_key_file(key_file)
        self._signed_size = -1

    def sign(self, archiver: Archiver) -> None:
        """Sign the manifest as it is, if it has grown.

        Raises ArchiveError where it doesn't begin with what is signed already: whoever cut or
        changed it must not get our signature for that.
        """
        if len(archiver.lines) == self._signed_size:
            return
        folder = self._folder
        if self._signed_size < 0 and folder.head_path.exists():
            problems = list(_head_problems(folder, archiver.manifest, self._keys.trusted))
            if problems:
                raise ArchiveError(
                    f"the manifest of {folder.root} isn't what was signed before:"
                    f" {problems[0].field}: expected {problems[0].expected}, found"
                    f" {problems[0].found}. It isn't signed again. Look into it with durabill"
                    " archive --verify --key, and restore the archive from a copy"
                )
        if self._keys.hand_overs:
            folder.replace(folder.hand_overs_path, self._keys.hand_overs.encode())
        note = signed_head(archiver.of, archiver.lines, [self._keys.key])
        folder.replace(folder.head_path, note.encode())
        self._signed_size = len(archiver.lines)


def verify_signed(
    folder: ArchiveFolder,
    key: str,
    trusted: Path | None = None,
    progress: Progress | None = None,
    *,
    deep: bool = True,
) -> Verified:
    """Return all that is wrong with an archive, its signed head included; `deep` as for `verify`.

    `key` is the public key, or the file that has it; `trusted` a file with a head that was kept.
    Raises ArchiveError, and KeyFileError for a key that is none.
    """
    public = read_public(key)
    verified = verify(folder, progress, deep=deep)
    if verified.manifest is None:
        return verified
    try:
        keys = trusted_keys(folder, public)
    except SealError as error:
        keys = (public,)
        verified.findings.append(
            finding("hand-overs", "signed by both keys", error, f"{MANIFEST}/hand-overs")
        )
    verified.findings += _head_problems(folder, verified.manifest, keys)
    if trusted is not None:
        verified.findings += _kept_head_problems(trusted, verified.manifest, keys)
    return verified


def trusted_keys(folder: ArchiveFolder, public: PublicKey) -> tuple[PublicKey, ...]:
    """Return a key and those that hand-overs in the archive tie to it."""
    if not folder.hand_overs_path.exists():
        return (public,)
    with told(folder.root, READ):
        return chain(public, folder.hand_overs_path.read_text(encoding="utf-8"))


def _head_problems(
    folder: ArchiveFolder, manifest: Manifest, keys: tuple[PublicKey, ...]
) -> Iterator[Finding]:
    """Yield what is wrong with the archive's own head."""
    if not folder.head_path.exists():
        yield finding("head", "a signed head", "none", HEAD_PLACE)
        return
    with told(folder.root, READ):
        note = folder.head_path.read_bytes().decode(errors="replace")
    try:
        head = read_head(note, keys)
    except DurabillError as error:
        yield finding("head", f"signed by {keys[0].name}", error, HEAD_PLACE)
        return
    # An archiver at work has signed more than was read by now.
    lines = folder.lines() if head.size > len(manifest.lines) else manifest.lines
    for what, expected, found in contradictions(head, manifest.of, lines):
        yield finding(what, expected, found, HEAD_PLACE)
    if head.size < len(manifest.lines) and not folder.is_locked():
        yield finding(
            "entries", f"{len(manifest.lines)} that are signed", str(head.size), HEAD_PLACE
        )


def _kept_head_problems(
    path: Path, manifest: Manifest, keys: tuple[PublicKey, ...]
) -> Iterator[Finding]:
    """Yield where the archive doesn't begin with what a head said that somebody kept."""
    try:
        head = read_head(path.read_text(encoding="utf-8"), keys)
    except (OSError, UnicodeDecodeError, Unreadable, NotVerified) as error:
        raise ArchiveUnreadable(f"{path} is no head to compare with: {error}") from error
    for what, expected, found in contradictions(head, manifest.of, manifest.lines):
        yield finding(what, expected, found, str(path))
