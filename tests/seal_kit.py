"""What the tests of the sealed log share: keys, logs in folders, records of the totals topic."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from durabill.schemas import encode_total
from durabill.stream_processors.audit.seal.check_all import SealedTopic
from durabill.stream_processors.audit.seal.checkpoints import Origin
from durabill.stream_processors.audit.seal.folder import Step, log_folder
from durabill.stream_processors.audit.seal.growing import GrowingLog, open_log
from durabill.stream_processors.audit.seal.keys import KeyFile, make_key_file, read_key_file
from tests.broker.ledger_kit import a_total

ORIGIN = Origin("cluster", "billing.totals", "topic-id", 0)


class Killed(Exception):
    """What a killed sealer leaves behind is what is on the disk then."""


def kill_after(step: Step, times: int = 1) -> Callable[[Step], None]:
    """Return an `on_step` that kills the sealer after a step has been done for the n-th time."""
    left = [times]

    def on_step(done: Step) -> None:
        left[0] -= done is step
        if done is step and left[0] == 0:
            raise Killed

    return on_step


def new_keys(folder: Path, name: str = "seal.key") -> KeyFile:
    """Make a key file in a folder, and read it."""
    make_key_file(folder / name, "billing.example")
    return read_key_file(folder / name)


def values_of(count: int) -> list[bytes]:
    """Encoded totals of so many orders."""
    return [encode_total(a_total(f"SO-{each}", 1, 1_000 + each)) for each in range(count)]


def grow(log: GrowingLog, values: Iterable[bytes | None]) -> None:
    """Have a log take these records next, at offsets with a gap after each, and seal them."""
    for value in values:
        log.append(log.next_offset + 1, value)
    log.commit()


def sealed(
    folder: Path,
    keys: KeyFile,
    values: Sequence[bytes | None],
    cuts: Sequence[int] = (),
    origin: Origin = ORIGIN,
) -> GrowingLog:
    """Return a log of these records in a folder, with a checkpoint at each cut and at the end."""
    log, _ = open_log(folder, origin, keys)
    for start, end in zip([0, *cuts], [*cuts, len(values)], strict=True):
        grow(log, values[start:end])
    return log


def files_of(folder: Path, origin: Origin = ORIGIN) -> dict[str, bytes]:
    """Return all files of a log."""
    root = log_folder(folder, origin).folder
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


def topic_of(
    values: Sequence[bytes | None], first: int = 0, end_now: int | None = None
) -> SealedTopic:
    """Return the topic that `grow` gives the records of, from the offset `first` on.

    By now it ends at `end_now`; None: with these values.
    """
    records = [(2 * at + 1, value) for at, value in enumerate(values)]

    def read(partition: int, offset: int) -> Iterable[tuple[int, bytes | None]]:
        assert partition == ORIGIN.partition
        return (each for each in records if each[0] >= max(offset, first))

    end = 2 * len(values)
    now = end if end_now is None else end_now
    names = ORIGIN.cluster, ORIGIN.topic, ORIGIN.topic_id
    return SealedTopic(*names, read, {0: first}, {0: end}, lambda partition: now)
