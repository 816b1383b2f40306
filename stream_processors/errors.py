"""Whose fault it is.

    BadRecord, BadTotal (in `schemas`)   the sender's: dead letter, 4xx; the process goes on
    BadBatch (in `unpack`)               the sender's: the rest of a batch is a dead letter
    DurabillError                        anything below; the message says what to do
    ├── SettingsError                    the operator's: all wrong settings at once; exit code 2
    ├── ContractError                    the topics or the log are not as the contract says
    │   └── CorruptBatch                 bytes that the broker served are no record batch
    ├── StateError                       a checkpoint can't be read, or has another format
    ├── AccessError                      a right on Kafka is missing, or a topic is
    ├── UnreachableError                 Kafka can't be reached, or doesn't let us in
    ├── FencedError                      another worker has taken a partition over
    ├── ForeignTotals                    another application id publishes to the same totals
    ├── PoisonError                      folding met a bug of ours; names the partition and record
    └── StallError                       something that must move stands still; exit code 75

What isn't here is our own bug: AssertionError and the rest end the process with a non-zero code,
for a wrong bill is worse than no bill.
"""

START_ANEW = (
    "start anew from the first segment under another DURABILL_APPLICATION_ID, with this one as"
    " DURABILL_PREVIOUS_APPLICATION_ID so that the recorded policies hold: totals that have been"
    " published are not published again"
)
"""What to do where the checkpoint is of no use any more, but the log is the same."""

BEGIN_ANEW = (
    "begin anew under another DURABILL_APPLICATION_ID: totals that have been published are not"
    " published again"
)
"""The same where the log is another one."""

NEW_TOPICS = (
    "begin new topics for segments and totals, with as many partitions each, under another"
    " DURABILL_APPLICATION_ID"
)


class DurabillError(Exception):
    """Something that an operator has to look at; the message says what to do."""

    exit_code = 1


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


class StateError(DurabillError):
    """A checkpoint can't be read."""


class AccessError(DurabillError):
    """A right on Kafka is missing, or the topic that it would be for."""


class UnreachableError(DurabillError):
    """Kafka can't be reached, or doesn't let us in; the message has its own word on it."""


class FencedError(DurabillError):
    """Another worker has taken a partition over; Kafka refuses whatever we'd still write."""


class ForeignTotals(DurabillError):
    """Another application id publishes to our partition of the totals."""

    def __init__(self, topic: str, partition: int) -> None:
        super().__init__(
            f"another application id publishes to {topic}/{partition} while this worker does: two"
            " at once would bill twice. Nothing was published twice. Stop the workers of one of"
            " them; the other goes on where that one ended"
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
