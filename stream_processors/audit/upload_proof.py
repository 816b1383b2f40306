"""Proves a receipt of an upload: are the records in the log that the gateway says are there?

The receipt names the first and the last offset. Between them there may be records of others, and
repeats of the order's own that another request brought. So the records that it can be of are those
with its order and its numbers; where they are more than its count, those left out are found by the
digest, among as many ways as can be tried.
"""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations, islice
from pathlib import Path
from typing import NamedTuple

from durabill.schemas.codec import FRAMING_SIZE, MARKER, decode_segment
from durabill.schemas.errors import BadRecord, DurabillError
from durabill.schemas.order_opened import is_opening
from durabill.schemas.upload_receipt import ReceiptUpload
from durabill.schemas.wire import read_segment_body
from durabill.stream_processors.kafka.options import LOOK_GROUP, quiet
from durabill.stream_processors.kafka.reading import partition_count, read_bounds
from durabill.stream_processors.settings import Settings

_WAYS_MAX = 20_000


class CannotTell(DurabillError):
    """What a receipt says can't be looked up, so nothing is known of it."""

    exit_code = 2


class Held(NamedTuple):
    """A record of the log."""

    offset: int
    key: bytes | None
    value: bytes | None


@dataclass(frozen=True, slots=True)
class Proof:
    """What was found of one order's upload; `why_not` is empty where it is proven."""

    upload: ReceiptUpload
    source: str
    why_not: str = ""


class Log:
    """Where a receipt's records are looked up: Kafka, what an archive has besides, or an archive.

    Without Kafka's address the archive is all there is. Raises CannotTell.
    """

    def __init__(self, settings: Settings, topic: str, archive: Path | None) -> None:
        if not settings.bootstrap_servers and archive is None:
            raise CannotTell(
                "neither a Kafka nor an archive is known to look into: set"
                " DURABILL_BOOTSTRAP_SERVERS, or give --archive"
            )
        self._settings, self._topic, self._archive = settings, topic, archive
        self._kafka = quiet(settings.librdkafka()) if settings.bootstrap_servers else None
        self._partitions = 0 if self._kafka is None else partition_count(self._kafka, topic)

    def records(self, upload: ReceiptUpload) -> tuple[str, Iterator[Held]]:
        """Return where the records between an upload's offsets are from, and these records.

        Raises CannotTell where some of these offsets are nowhere any more, NotThere where the log
        never had them.
        """
        first, last = upload.off
        if self._kafka is None:
            return self._archived(upload, last + 1)
        if not 0 <= upload.par < self._partitions:
            raise NotThere(f"topic {self._topic} has no partition {upload.par}")
        begins, ends = read_bounds(self._kafka, LOOK_GROUP, self._topic, [upload.par])[upload.par]
        if last >= ends:
            raise NotThere(f"the log ends at offset {ends - 1}, before the receipt's last")
        if first >= begins:
            return "Kafka's log", self._live(upload, (begins, ends))
        if self._archive is None:
            raise CannotTell(
                f"Kafka has deleted what was before offset {begins} of {self._topic}/{upload.par},"
                f" and the receipt is of {first} to {last}: --archive reads it from an archive"
            )
        source, archived = self._archived(upload, begins)
        if last < begins:
            return source, archived
        return f"{source} and Kafka's log", (
            each for part in (archived, self._live(upload, (begins, ends))) for each in part
        )

    def _live(self, upload: ReceiptUpload, bounds: tuple[int, int]) -> Iterator[Held]:
        """Yield Kafka's records, as the worker reads them: what others wrote between may be bad."""
        from durabill.stream_processors.audit.raw_log import FetchedLog
        from durabill.stream_processors.engine.batch import records

        begins, ends = bounds
        first, last = upload.off
        for part in FetchedLog(
            self._settings, self._topic, upload.par, max(first, begins), ends
        ).parts():
            for each in records(part.chunk, is_look=True):
                if each.offset > last:
                    return
                yield Held(each.offset, each.key, each.value)
            if part.chunk.next_offset > last:
                return

    def _archived(self, upload: ReceiptUpload, end: int) -> tuple[str, Iterator[Held]]:
        """Return the archive's records of [the upload's first offset, end)."""
        # Parquet is an extra's, for those who have an archive.
        from durabill.stream_processors.audit.archive.folder import ArchiveFolder
        from durabill.stream_processors.audit.archive.manifest import LOG_FIELDS
        from durabill.stream_processors.audit.archive.source import ArchivedLog
        from durabill.stream_processors.engine.batch import records

        assert self._archive is not None
        folder = ArchiveFolder(self._archive)
        manifest = folder.manifest()
        if self._kafka is not None:
            from durabill.stream_processors.audit.archive.reach import live_log

            live = live_log(self._settings)
            odd = [
                words
                for name, words in LOG_FIELDS.items()
                if getattr(manifest.of, name) != getattr(live, name)
            ]
            if odd:
                raise CannotTell(f"the archive is of another log: its {odd[0]} is not Kafka's")
        if manifest.of.topic != self._topic:
            raise CannotTell(
                f"the archive is of topic {manifest.of.topic}, the receipt of {self._topic}"
            )
        reach = manifest.reach().get(upload.par)
        if reach is None:
            raise NotThere(f"the archive has no partition {upload.par}")
        first, last = upload.off
        if not reach.first_offset <= first or min(last + 1, end) > reach.next_offset:
            raise CannotTell(
                f"the archive has offsets {reach.first_offset} to {reach.next_offset - 1} of"
                f" partition {upload.par}, and the receipt is of {first} to {last}"
            )
        log = ArchivedLog(folder, manifest, upload.par, min(last + 1, end), first)
        held = (
            Held(each.offset, each.key, each.value)
            for part in log.parts()
            for each in records(part.chunk)
            if first <= each.offset <= last
        )
        return "the archive", held


class NotThere(DurabillError):
    """The log never had what a receipt says: it isn't proven."""


def prove(log: Log, upload: ReceiptUpload) -> Proof:
    """Return whether the log has what a receipt says of one order. Raises CannotTell."""
    if upload.off[0] > upload.off[1] or not upload.num:
        return Proof(upload, "", "it names no records")
    try:
        source, records = log.records(upload)
    except NotThere as error:
        return Proof(upload, "Kafka's log", str(error))
    return Proof(upload, source, compare(upload, records))


def compare(upload: ReceiptUpload, records: Iterable[Held]) -> str:
    """Return why the records aren't those of the receipt, "" where they are. Raises CannotTell.

    Where there are records of the order that can't be read, it is proven or can't be told: any of
    them might be the receipt's.
    """
    able, unread = _able(upload, records)
    why_not = _compare(upload, able)
    if why_not and unread:
        raise CannotTell(
            f"{unread} records of its order between its offsets can't be read by our schema, so it"
            f" can't be told whether they are its own; of the others {why_not}"
        )
    return why_not


def _compare(upload: ReceiptUpload, able: Sequence[Held]) -> str:
    surplus = len(able) - upload.count
    if surplus < 0:
        return f"{len(able)} of its {upload.count} records are there"
    if (able[0].offset, able[-1].offset) != upload.off:
        return "its first and its last offset hold no records of it"
    ways = combinations(range(1, len(able) - 1), surplus)
    for at, left_out in enumerate(islice(ways, _WAYS_MAX + 1)):
        if at == _WAYS_MAX:
            raise CannotTell(
                f"between its offsets there are {surplus} repeats of its numbers more than it is"
                " of: which of them are its own can't be found out"
            )
        values = _values(able, set(left_out))
        if hashlib.sha256(values).hexdigest() == upload.sha256:
            numbers = {_number(each) for index, each in enumerate(able) if index not in left_out}
            return "" if _are_all(upload, numbers) else "its records have other numbers"
    return "the records at its offsets are others: their digest is another"


def _able(upload: ReceiptUpload, records: Iterable[Held]) -> tuple[list[Held], int]:
    """Return the records that the receipt can be of, and how many of its order can't be read."""
    key = upload.ord.encode()
    able, unread = [], 0
    for each in records:
        if each.key != key or not _is_candidate(each.value):
            continue
        number = _number(each)
        if number is None:
            unread += 1
        elif any(first <= number <= last for first, last in upload.num):
            able.append(each)
    return able, unread


def _is_candidate(value: bytes | None) -> bool:
    """Tell whether a value may be a segment of a gateway's, of this version or another."""
    return value is not None and value.startswith((b"\0", MARKER)) and not is_opening(value)


def _number(record: Held) -> int | None:
    """Return a segment's business data number, None where it can't be read.

    A registry's framing is the gateway's own, so the body is read by our schema, whatever its id.
    """
    value = record.value or b""
    try:
        if value[:1] == b"\0":
            return read_segment_body(value, FRAMING_SIZE)[1]
        return decode_segment(value).business_data_number
    except BadRecord:
        return None


def _values(records: Sequence[Held], left_out: set[int]) -> bytes:
    return b"".join(each.value or b"" for at, each in enumerate(records) if at not in left_out)


def _are_all(upload: ReceiptUpload, numbers: set[int | None]) -> bool:
    wanted = sum(last - first + 1 for first, last in upload.num)
    return len(numbers) == wanted  # each is within the ranges already
