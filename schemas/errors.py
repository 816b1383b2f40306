"""The one error tree: whose fault it is, what a process ends with, what HTTP answers.

    DurabillError                    the message says what to do; exit code 1 where none is given
    ├── InputError                   the sender's; HTTP 422; the process goes on
    │   ├── BadRecord                a record: it becomes a dead letter
    │   ├── BadTotal                 a total that can't be read
    │   └── BadTruth                 (fleet.truth_file) a file that is no truth file
    ├── SettingsError                the operator's: all that is wrong at once; exit code 2
    ├── BadDsn                       (stream_processors.dsn) the same of a DSN
    ├── ContractError                the topics or the log are not as the contract says, or an
    │   │                            application id is in use for others
    │   ├── CorruptBatch             bytes that the broker served are no record batch
    │   └── SegmentsLost             the log no longer holds the next segments to read
    ├── StateError                   a checkpoint can't be read, or doesn't fit the topics
    ├── AccessError                  a right on Kafka is missing, or a topic is
    ├── UnreachableError             Kafka or the schema registry can't be reached, falls silent, or
    │                                doesn't let us in
    ├── FencedError                  another worker has taken a partition over
    ├── ForeignTotals                another application id publishes to the same totals
    ├── PoisonError                  folding met a bug of ours: partition, record; exit code 70
    ├── StallError                   something that must move stands still; exit code 75
    ├── LedgerError                  (ledger.records) the ledger can't go on
    │   ├── OffsetOutOfRange         records after the ledger's offset are gone
    │   └── TopicReplaced            the totals topic was deleted and recreated
    ├── SealError                    (audit.seal.errors) the sealed log can't be kept, or read
    │   ├── SealBusy                 another sealer works in the folder
    │   ├── KeyFileError             a key file can't be used; exit code 2
    │   ├── NotVerified              a receipt or a checkpoint doesn't prove what it says
    │   └── Unreadable               a file is no receipt, or no checkpoint; exit code 2
    ├── ApiKeyError                  (gateway.auth.api_keys) the file of API keys can't be used, or
    │                                doesn't allow a change; exit code 2
    ├── BadKeySet                    (gateway.auth.issuer_keys) no JWK set of an issuer; exit code 2
    ├── UnsafeFile                   (gateway.auth.watched_file) others could write it; exit code 2
    ├── AuditError                   (audit) an audit can't be carried out; exit code 2
    ├── ArchiveError                 (audit.archive.manifest) the archive can't be written or read
    │   ├── BadManifest              an entry of its manifest is damaged
    │   ├── BadFile                  (audit.archive.files) a file of it is damaged
    │   ├── OtherLog                 (audit.archive.archiver) it is of another log
    │   ├── ArchiveBusy              (audit.archive.folder) another process archives there
    │   └── ArchiveUnreadable        (audit.archive.folder) there is none to look at; exit code 2
    ├── DeadLetterError              (dead_letters.letters) what was asked can't be done
    ├── StackError                   (local.stack) a local server is not as needed
    ├── SigningKeyError              (gateway.key_sets) a file of keys can't be used; exit code 2
    ├── GatewayUnknown               (commands.clients) a gateway can't be asked; exit code 2
    ├── CannotTell                   (audit.upload_proof) a receipt can't be looked up; exit code 2
    ├── NotThere                     (audit.upload_proof) the log never had what a receipt says
    ├── NoReceipt                    (schemas.upload_receipt) it is no receipt; exit code 2
    ├── NotSigned                    (schemas.upload_receipt) none of the keys has signed it
    ├── ExtraMissing                 (schemas.extras) a package is missing that an extra brings
    ├── MigrationError               (deploy.migrate) files and database don't fit together
    ├── ForeignFolder                (deploy.files) root would work in another user's folder
    ├── UnusableFolder               (deploy.files) a folder can't be made, or be used
    ├── OutputError                  (deploy.streams) standard output can't be written
    └── ProducerError                (sdk.session) the SDK's: its own tree is drawn there

Errors that are caught where they are expected stand apart: `unpack.BadBatch` (the rest of a batch
becomes dead letters), `ports.WriterClosed`, `registry.NoAnswer`, `ledger.records.Fenced`, and the
gateway's and the SDK's own signals. What isn't here is our own bug: AssertionError and the rest end
the process with a non-zero code, for a wrong bill is worse than no bill.
"""

from enum import StrEnum


class Reason(StrEnum):
    """Why a record became a dead letter; checked in this order, the first that holds is given."""

    NOT_AVRO = "NOT_AVRO"
    UNKNOWN_SCHEMA = "UNKNOWN_SCHEMA"
    KEY_MISMATCH = "KEY_MISMATCH"
    BAD_ORDER_NUMBER = "BAD_ORDER_NUMBER"
    BAD_BUSINESS_DATA_NUMBER = "BAD_BUSINESS_DATA_NUMBER"
    BAD_TIME_SEQUENCE = "BAD_TIME_SEQUENCE"
    IN_THE_FUTURE = "IN_THE_FUTURE"
    TOO_LONG = "TOO_LONG"
    TOO_LATE = "TOO_LATE"
    WRONG_PARTITION = "WRONG_PARTITION"
    ALREADY_OPENED = "ALREADY_OPENED"
    """Of an opening: its order is known, and not opened by the same client."""
    NOT_OPENED = "NOT_OPENED"
    BEFORE_OPENING = "BEFORE_OPENING"
    TOO_FRAGMENTED = "TOO_FRAGMENTED"
    BAD_BATCH = "BAD_BATCH"
    """Not of a record, but of the rest of a batch: from a record on that can't be read."""


class DurabillError(Exception):
    """The root: somebody can mend it, and the message says what to do.

    `exit_code` is what a process ends with that ends because of it.
    """

    exit_code = 1


_ANOTHER_ID = "under another DURABILL_APPLICATION_ID"
_NOT_AGAIN = "totals and openings that have been published are not published again"

START_ANEW = (
    f"start anew from the first segment {_ANOTHER_ID}, with this one as"
    f" DURABILL_PREVIOUS_APPLICATION_ID so that the recorded policies hold: {_NOT_AGAIN}"
)
"""What to do where the checkpoint is of no use any more, but the log is the same."""

RESTORE_OR_START_ANEW = f"Restore them from the archive, or accept the loss and {START_ANEW}"
"""The same where segments are lost, which may be in an archive."""

BEGIN_ANEW = f"start anew {_ANOTHER_ID}: {_NOT_AGAIN}"
"""What to do where the log is another one."""

NEW_TOPICS = (
    f"start anew {_ANOTHER_ID}, on new topics for segments, totals and orders with as many"
    " partitions each"
)
"""What to do where the topic has other partitions, so that orders have moved."""

REBUILD = "Stop the workers, make it anew by `durabill rebuild checkpoint`, and start them"
"""What to do where a checkpoint was damaged, or somebody else has written into it."""

NEW_RESULTS = {
    "totals": (
        "stop the workers, make the totals again with `durabill rebuild totals --into TOPIC`, say"
        " DURABILL_TOTALS_TOPIC=TOPIC everywhere, run `durabill rebuild checkpoint`, and start them"
    ),
    "orders": (
        "stop the workers, say DURABILL_ORDERS_TOPIC=TOPIC everywhere, with a new name, run"
        " `durabill topics create` and `durabill rebuild checkpoint`, and start them: they pass"
        " all openings on again"
    ),
}
"""What to do where a results topic holds what the log doesn't give."""

OWN_APPLICATION_ID = "Give each deployment a DURABILL_APPLICATION_ID of its own"
"""What to do where two of them share one."""


class InputError(DurabillError, ValueError):
    """The sender's fault: what came breaks the contract."""

    http_status = 422


def is_told(error: BaseException) -> bool:
    """Tell whether a process that ends because of `error` says its message alone.

    An InputError is the sender's. Where one comes up that nobody has taken for that, the bug is
    ours, as it is with all that stands outside the tree.
    """
    return isinstance(error, DurabillError) and not isinstance(error, InputError)


class BadRecord(InputError):
    """A record breaks the contract for `reason`; `detail` says how."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


class BadTotal(InputError):
    """A total that cannot be read, or whose fields contradict each other."""


class SettingsError(DurabillError):
    """One or more settings are wrong; `problems` lists all of them."""

    exit_code = 2

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


class ContractError(DurabillError):
    """The topics or the log are not as the contract says."""


class CorruptBatch(ContractError):
    """Bytes that the broker served are no record batch."""


class SegmentsLost(ContractError):
    """The log no longer holds the next segments of a partition; an archive may have them."""

    def __init__(self, topic: str, partition: int, next_offset: int, message: str) -> None:
        super().__init__(message)
        self.topic, self.partition, self.next_offset = topic, partition, next_offset


class StateError(DurabillError):
    """A checkpoint can't be read."""


class AccessError(DurabillError):
    """A right on Kafka is missing, or the topic that it would be for."""


class UnreachableError(DurabillError):
    """Kafka, or the schema registry, can't be reached or falls silent; the message says why."""


class FencedError(DurabillError):
    """Another worker has taken a partition over; Kafka refuses whatever we'd still write."""


class ForeignTotals(DurabillError):
    """Another application id publishes to our partition of the totals."""

    def __init__(self, topic: str, partition: int) -> None:
        super().__init__(
            f"another application id publishes to {topic}/{partition} while this worker does: two"
            " at once would bill twice. Nothing was published twice. Stop the workers of one of"
            " them; the other goes on where that one ended. If there is no other, somebody else"
            " writes there: find out who has the right to, and run `durabill audit`"
        )


class PoisonError(DurabillError):
    """Folding failed on a bug of ours; `partition`'s table must not be used any more.

    `offset` (None: a timer, no record) and `key` (None: not known) tell what was being folded.
    """

    exit_code = 70

    def __init__(
        self, partition: int, offset: int | None, key: bytes | None, cause: BaseException
    ) -> None:
        where = "a timer" if offset is None else f"offset {offset}"
        order = "not known" if key is None else repr(key.decode("utf-8", "replace"))
        super().__init__(
            f"partition {partition} can't be folded on from {where}, order {order}: a bug of"
            f" Durabill's ({type(cause).__name__}: {cause}). Nothing wrong was published, and"
            " nothing is lost: its log and its checkpoint stay as they are. Report it with the"
            " traceback; a version that mends it goes on from there. Starting anew won't help"
        )
        self.partition, self.offset, self.key = partition, offset, key


class StallError(DurabillError):
    """Something that must move stands still, and only starting anew can repair it."""

    exit_code = 75
