"""Finds an order's total in a sealer's folder, and makes its receipt."""

from collections.abc import Callable, Iterator
from pathlib import Path

from durabill.schemas import BadTotal, OrderTotal, decode_total, partition_for
from durabill.schemas.merkle import leaf_hash
from durabill.stream_processors.audit.seal.checkpoints import Origin, read_checkpoint
from durabill.stream_processors.audit.seal.entries import LARGE, entry_of, large_path
from durabill.stream_processors.audit.seal.errors import SealError, Unreadable
from durabill.stream_processors.audit.seal.folder import CHECKPOINT, LogFolder, log_folder, logs_in
from durabill.stream_processors.audit.seal.merkle import (
    ProofError,
    inclusion_proof,
    verify_inclusion,
)
from durabill.stream_processors.audit.seal.receipt import Receipt, make_receipt
from durabill.stream_processors.audit.seal.tiles import WIDTH, TileError, TileReader

Progress = Callable[[str, int, int], None]


def find_receipt(
    folder: Path,
    topic: str,
    order: str,
    revision: int | None = None,
    progress: Progress | None = None,
) -> Receipt | None:
    """Return the receipt of an order's latest sealed revision, or of the given one; None if none.

    Where logs of recreated topics are there as well, the newest log that has the order counts.
    Raises SealError where the folder has no logs of the topic, or can't be read.
    """
    origins = [each for each in logs_in(folder) if each.topic == topic]
    if not origins:
        raise SealError(
            f"{folder} (DURABILL_SEAL_DIR) has no sealed log of {topic}: run durabill seal"
        )
    for origin in _likely_first(folder, origins, order):
        found = _find(log_folder(folder, origin), order.encode(), revision, progress)
        if found is not None:
            return found
    return None


def _likely_first(folder: Path, origins: list[Origin], order: str) -> Iterator[Origin]:
    """Yield the logs in which the order is by its partition first; newer logs before older ones."""
    counts: dict[tuple[str, str], int] = {}
    for each in origins:
        topic = each.cluster, each.topic_id
        counts[topic] = max(counts.get(topic, 0), each.partition + 1)

    def rank(each: Origin) -> tuple[bool, bool, int]:
        files = log_folder(folder, each)
        note = files.text(CHECKPOINT)
        closed = note is None or read_checkpoint(note).closed is not None
        home = partition_for(order.encode(), counts[each.cluster, each.topic_id])
        return closed, each.partition != home, -each.first_offset

    yield from sorted(origins, key=rank)


def _find(
    files: LogFolder, order: bytes, revision: int | None, progress: Progress | None
) -> Receipt | None:
    note = files.text(CHECKPOINT)
    assert note is not None, "logs are found by their checkpoints"
    checkpoint = read_checkpoint(note)
    reader = TileReader(files.read, checkpoint.size)
    bundles = -(-checkpoint.size // WIDTH)
    try:
        for number in range(bundles - 1, -1, -1):
            if progress is not None:
                progress(f"reading {checkpoint.origin}", bundles - number, bundles)
            bundle = reader.bundle(number)
            if order not in bundle and LARGE not in bundle:
                continue
            entries = reader.entries(number)
            for at in range(len(entries) - 1, -1, -1):
                value = _value(files, entries[at])
                total = _total_of(value, order)
                if total is not None and revision in (None, total.revision):
                    index = number * WIDTH + at
                    proof = inclusion_proof(reader, index, checkpoint.size)
                    leaf = leaf_hash(entries[at])
                    verify_inclusion(leaf, index, checkpoint.size, proof, checkpoint.root)
                    return make_receipt(value, index, proof, note)
    except (TileError, Unreadable, ProofError) as error:
        raise SealError(
            f"{files.folder} was altered: {error}. `durabill seal check` says where it is wrong"
        ) from error
    return None


def _value(files: LogFolder, entry: bytes) -> bytes:
    """Return the record's value that an entry stands for. Raises TileError where it is missing."""
    path = large_path(entry)
    if path is None:
        return entry
    value = files.read(path)
    if value is None or entry_of(value) != entry:
        raise TileError(f"{path} is missing, or was altered")
    return value


def _total_of(value: bytes, order: bytes) -> OrderTotal | None:
    """Return the total of the order in a value; what can't be of it isn't decoded."""
    if order not in value:
        return None
    try:
        total = decode_total(value)
    except BadTotal:
        return None
    return total if total.service_order_number.encode() == order else None
