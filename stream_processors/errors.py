"""Whose fault it is.

    BadRecord, BadTotal (in `schemas`)   the sender's: dead letter, 4xx; the process goes on
    DurabillError                        anything below; the message says what to do
    ├── SettingsError                    the operator's: all wrong settings at once; exit code 2
    ├── ContractError                    the topics or the log are not as the contract says
    │   └── CorruptBatch                 bytes that the broker served are no record batch
    ├── StateError                       a checkpoint can't be read, or has another format
    ├── AccessError                      a right on Kafka is missing, or a topic is
    ├── UnreachableError                 Kafka can't be reached, or doesn't let us in
    ├── FencedError                      another worker has taken a partition over
    └── StallError                       something that must move stands still; exit code 75

What isn't here is our own bug: AssertionError and the rest end the process with a non-zero code,
for a wrong bill is worse than no bill.
"""


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


class StallError(DurabillError):
    """Something that must move stands still, and only starting anew can repair it."""

    exit_code = 75
