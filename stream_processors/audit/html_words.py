"""What an audit's page says in words: each kind of finding, what can't be proven, a glossary."""

from durabill.stream_processors.audit.findings import Kind

_LOG_SAYS = "Trust the log. Don't bill, or correct the bill, by what the log gives."
_TAMPERED = (
    "Find out who can write there: no part of Durabill does this. Keep the topic as it is; it is"
    " the evidence."
)

ADVICE: dict[Kind, tuple[str, str]] = {
    Kind.MISSING_TOTAL: (
        "The records of an order give a total, and it isn't among the published ones: the order, or"
        " a correction of it, was not billed.",
        "Look whether the total was deleted (retention, compaction of the topic). Rebuild the"
        " totals from the log; then audit again.",
    ),
    Kind.TOTAL_WITHOUT_EVIDENCE: (
        "A total, or another record, stands among the published ones, and no record of a client"
        " gives it.",
        f"Don't bill it. {_TAMPERED}",
    ),
    Kind.FIELD_DIFFERS: (
        "A published total has another value than its records give.",
        f"{_LOG_SAYS} {_TAMPERED}",
    ),
    Kind.DIGEST_DIFFERS: (
        "The fingerprint of a total's evidence isn't the one that its records have.",
        f"{_LOG_SAYS} {_TAMPERED}",
    ),
    Kind.BROKEN_REVISION_CHAIN: (
        "A correction doesn't name the fingerprint of the total that it takes the place of: one"
        " between them is missing, or was changed.",
        "Look at all revisions of the order (durabill explain), and at the other findings of it.",
    ),
    Kind.PUBLISHED_TWICE: (
        "The same revision of an order is published more than once: somebody who adds up would"
        " bill it twice.",
        "See that readers of the topic read committed records only; then look who wrote the"
        " second one.",
    ),
    Kind.LEDGER_DIFFERS: (
        "A row of the ledger isn't what was published: it was edited.",
        f"{_LOG_SAYS} Find out who can write to the table; the ledger itself never changes a row.",
    ),
    Kind.MISSING_ROW: (
        "The ledger has read past a total or an opening and has no row of it: it was deleted.",
        "Let the ledger read the topic anew; what is there stays. Find out who can delete rows.",
    ),
    Kind.ROW_WITHOUT_TOTAL: (
        "The ledger has a row that stands for no published total or opening: it was put in by hand,"
        " or twice.",
        "Don't bill it. Find out who can write to the table.",
    ),
    Kind.OPENING_MISSING: (
        "An order was opened, and nobody who reads the orders topic, as the ledger, knows of it.",
        "Start a worker, and see whether it passes the opening on; the log still has it. If the"
        " workers are past it, somebody has removed the record.",
    ),
    Kind.OPENING_WITHOUT_EVIDENCE: (
        "The orders topic says that an order was opened, and the log has no such opening, or one"
        " that didn't count: somebody else wrote it.",
        "Don't go by it. Find out who can write to the topic.",
    ),
    Kind.OPENING_DIFFERS: (
        "The orders topic has another opening than the log: another tenant, service or time.",
        f"{_LOG_SAYS} Find out who can write to the topic.",
    ),
    Kind.OPENED_TWICE: (
        "An opening was passed on once more. Readers that know openings by their place are safe.",
        "Find out whether somebody copied records, or two deployments write to one topic.",
    ),
    Kind.OFFSET_UNEXPLAINED: (
        "Places of the log hold nothing, and nothing says why: records may have been removed.",
        "Look at the topic's settings: it must not be compacted. Compare with an archive.",
    ),
    Kind.LOG_HEAD_MISSING: (
        "The beginning of the log is gone. Totals of orders that may have begun there can't be"
        " proven.",
        "Give the archive that has it to the audit. Set the topic's retention longer, or archive"
        " in time.",
    ),
    Kind.DEAD_LETTER_MISSING: (
        "A record was rejected, and isn't among the dead letters, where somebody could see and"
        " repair it.",
        "Look at the retention of the dead letters. The record is still in the log, at its place.",
    ),
    Kind.DEAD_LETTER_UNJUSTIFIED: (
        "A dead letter says that a record was rejected, and by the log it wasn't, or for another"
        " reason.",
        _TAMPERED,
    ),
    Kind.COPY_MISSING: (
        "A record lay in a wrong partition, was sent on to the right one, and isn't there: it"
        " doesn't count.",
        "Send the record again: its place in the log is told below.",
    ),
    Kind.SEAL_INCONSISTENT: (
        "The sealed log of the totals, which nobody can change unseen, contradicts them, or a"
        " checkpoint that somebody kept: history was rewritten.",
        "Keep all copies of checkpoints. Compare with those that customers and auditors have.",
    ),
    Kind.ARCHIVE_INCONSISTENT: (
        "A file of the archive is missing, was changed, or overlaps another one.",
        "Restore the file from a copy, and verify the archive again.",
    ),
}
"""Kind -> what it means, what to do."""

CANNOT_BE_PROVEN = (
    "That a client used the service at all, or told the truth of it: the audit proves what follows"
    " from the records that arrived.",
    "What never reached the log: a record that a client or a gateway lost leaves no trace but a"
    " missing number.",
    "That nobody has replaced the log as a whole, before anybody kept a signed checkpoint of it.",
)

GLOSSARY = (
    (
        "log",
        "The topic that every report of a client goes into, in the sequence in which the broker"
        " stored it. Nothing else decides what is billed.",
    ),
    (
        "total",
        "What an order comes to: the time that its records prove, each millisecond once.",
    ),
    (
        "proven",
        "The audit has computed the total anew from the log, and every field, the fingerprint"
        " included, is what was published.",
    ),
    ("revision", "The first total of an order is revision 1; later ones take its place."),
    (
        "offset, partition",
        "A record's place in the log. A partition's offsets count up from 0 and are never used"
        " again, so a hole shows.",
    ),
    (
        "control, aborted",
        "Places in the log that Kafka itself uses: marks of transactions, and what was taken back"
        " by one.",
    ),
    ("clock mark", "A record of the workers' own by which a silent partition's time moves on."),
    ("dead letter", "A record that was rejected, kept in a topic of its own with the reason."),
    ("sent on", "A record that lay in a wrong partition, and was copied to its own."),
    ("ledger", "The table in PostgreSQL that the totals are recorded in."),
    ("policy", "The times that decide when an order settles, and until when a record counts."),
)
