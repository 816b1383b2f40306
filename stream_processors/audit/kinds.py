"""What kinds of differences an audit finds, and what each is called for people."""

from enum import StrEnum


class Kind(StrEnum):
    """What kind of difference a finding is."""

    MISSING_TOTAL = "missing_total"
    """The log gives a total that was not published."""

    TOTAL_WITHOUT_EVIDENCE = "total_without_evidence"
    """A published total, or a record among the totals, that the log doesn't give."""

    FIELD_DIFFERS = "field_differs"
    """A published total has another value in a field than the log gives."""

    DIGEST_DIFFERS = "digest_differs"
    """The same of its digest."""

    BROKEN_REVISION_CHAIN = "broken_revision_chain"
    """A total doesn't name the digest of the revision before it."""

    PUBLISHED_TWICE = "published_twice"
    """An (order, revision) is there once more, with the same content or another."""

    LEDGER_DIFFERS = "ledger_differs"
    """A row of the ledger has another value than what it stands for, in the topic or by the log."""

    MISSING_ROW = "missing_row"
    """The ledger lacks a total or an opening that it has read past."""

    ROW_WITHOUT_TOTAL = "row_without_total"
    """The ledger has a row, or one once more, that stands for no published total or opening."""

    OPENING_MISSING = "opening_missing"
    """The log gives an opening that was not passed on to the orders topic."""

    OPENING_WITHOUT_EVIDENCE = "opening_without_evidence"
    """A record of the orders topic that the log doesn't give."""

    OPENING_DIFFERS = "opening_differs"
    """An opening in the orders topic has other bytes than the log has in its place."""

    OPENED_TWICE = "opened_twice"
    """An opening is in the orders topic once more."""

    OFFSET_UNEXPLAINED = "offset_unexplained"
    """Offsets of the log are neither data nor marker nor aborted."""

    LOG_HEAD_MISSING = "log_head_missing"
    """The log no longer begins at its first offset, so not all can be recomputed."""

    DEAD_LETTER_MISSING = "dead_letter_missing"
    """A record was rejected, and is not among the dead letters."""

    DEAD_LETTER_UNJUSTIFIED = "dead_letter_unjustified"
    """A dead letter stands for no rejected record, or has another reason."""

    COPY_MISSING = "copy_missing"
    """A record was sent on to its right partition, and did not arrive."""

    SEAL_INCONSISTENT = "seal_inconsistent"
    """The sealed log contradicts the totals, or a checkpoint that somebody kept."""

    ARCHIVE_INCONSISTENT = "archive_inconsistent"
    """The archive contradicts itself, or the log."""


MEANINGS = {
    Kind.MISSING_TOTAL: "the log gives a total that was not published",
    Kind.TOTAL_WITHOUT_EVIDENCE: "a published total that the log does not give",
    Kind.FIELD_DIFFERS: "a published total has another value than the log gives",
    Kind.DIGEST_DIFFERS: "a published total has another evidence digest than the log gives",
    Kind.BROKEN_REVISION_CHAIN: "a total does not name the digest of the revision before it",
    Kind.PUBLISHED_TWICE: "an order's revision was published more than once",
    Kind.LEDGER_DIFFERS: "a row of the ledger differs from the total or the opening",
    Kind.MISSING_ROW: "the ledger lacks a total or an opening that it has read past",
    Kind.ROW_WITHOUT_TOTAL: "a row of the ledger stands for no published total or opening",
    Kind.OPENING_MISSING: "an opening of the log was not passed on",
    Kind.OPENING_WITHOUT_EVIDENCE: "a record of the orders topic that the log does not give",
    Kind.OPENING_DIFFERS: "an opening that was passed on has other bytes than the log has",
    Kind.OPENED_TWICE: "an opening was passed on more than once",
    Kind.OFFSET_UNEXPLAINED: "offsets of the log are missing without an explanation",
    Kind.LOG_HEAD_MISSING: "the beginning of the log is gone: what rests on it can't be proven",
    Kind.DEAD_LETTER_MISSING: "a rejected record is not among the dead letters",
    Kind.DEAD_LETTER_UNJUSTIFIED: "a dead letter that the log does not justify",
    Kind.COPY_MISSING: "a record that was sent on did not arrive",
    Kind.SEAL_INCONSISTENT: "the sealed log is inconsistent",
    Kind.ARCHIVE_INCONSISTENT: "the archive is inconsistent",
}
"""Each kind in words, for people."""
