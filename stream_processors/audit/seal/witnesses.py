"""Collects what a check of the sealed log goes by: the keys, and every checkpoint that anybody has.

Checkpoints of files that somebody kept count as much as the published ones: a file may hold a
checkpoint as it was signed, or a receipt, which has one.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from durabill.stream_processors.audit.seal.check import Witnessed
from durabill.stream_processors.audit.seal.errors import KeyFileError, NotVerified, Unreadable
from durabill.stream_processors.audit.seal.folder import HAND_OVERS
from durabill.stream_processors.audit.seal.keys import chain, read_key_file, read_public
from durabill.stream_processors.audit.seal.notes import PublicKey
from durabill.stream_processors.audit.seal.publish import (
    HAND_OVERS_KEY,
    all_published,
    recorded_checkpoints,
)
from durabill.stream_processors.audit.seal.receipt import PROOF_HEAD, read_receipt


def keys_of(folder: Path, public: str | None, key_file: str) -> tuple[PublicKey, ...]:
    """Return the trusted key, and those that the folder's hand-overs tie to it.

    Raises KeyFileError where there is neither a public key nor a key file; NotVerified, Unreadable
    for hand-overs that aren't what they say.
    """
    handed: list[str] = []
    if key_file:
        own = read_key_file(Path(key_file))
        handed.append(own.hand_overs)
    if public:
        key = read_public(public)
    elif key_file:
        key = own.key.public
    else:
        raise KeyFileError(
            "say whose signatures count: --key PUBLIC-KEY, or DURABILL_SEAL_KEY_FILE"
        )
    path = folder / HAND_OVERS
    try:
        if path.exists():
            handed.append(path.read_text(encoding="utf-8"))
        return chain(key, "".join(handed))
    except (NotVerified, Unreadable) as error:
        raise type(error)(f"{path}: {error}") from error


def all_witnesses(
    kafka: Mapping[str, Any],
    seal_topic: str,
    totals_topic: str,
    dsn: str,
    trusted: Sequence[Path],
) -> list[Witnessed]:
    """Return the checkpoints of the topic, of the ledger and of the files."""
    found = [trusted_checkpoint(each) for each in trusted]
    if dsn:
        place = "ledger, table sealed_checkpoints"
        for note, trouble in recorded_checkpoints(dsn, totals_topic):
            found.append(Witnessed(place, note, trouble=trouble))
    # After the ledger, which gets a checkpoint only once the topic has it.
    for key, notes in all_published(kafka, seal_topic).items():
        if key != HAND_OVERS_KEY.decode() and f"/{totals_topic}/" in key:
            place = f"topic {seal_topic}"
            found += [Witnessed(f"{place}, an earlier record", note) for note in notes[:-1]]
            found.append(Witnessed(place, notes[-1], is_current=True))
    return found


def trusted_checkpoint(path: Path) -> Witnessed:
    """Return the checkpoint of a file: itself, or that of the receipt in it. Raises Unreadable."""
    try:
        data = path.read_bytes()
        is_receipt = PROOF_HEAD.encode() in data
        note = read_receipt(data).note if is_receipt else data.decode()
    except OSError as error:
        raise Unreadable(f"{path}: {error.strerror}") from error
    except (UnicodeDecodeError, Unreadable) as error:
        raise Unreadable(f"{path} has no checkpoint: {error}") from error
    return Witnessed(str(path), note)
