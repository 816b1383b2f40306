"""What the words on an order's page mean, for somebody who doesn't know the engine."""

WORDS = (
    (
        "record, segment",
        "One report of the client's: “this order used the service from … to …”, with a number"
        " that counts 1, 2, 3 … within the order. The client sends one every interval, and the"
        " last one has the end identifier.",
    ),
    (
        "proven time, union",
        "All milliseconds that at least one record that counts has reported, each counted once,"
        " however often it was reported. This is what is billed.",
    ),
    (
        "repeat, counted already",
        "A record, or a part of one, whose time other records have reported before. Networks and"
        " clients send twice; it does no harm and isn't billed twice.",
    ),
    (
        "gap",
        "Time between the order's start and its end that is in no record. It isn't billed. Either"
        " the service stood still, or a report was lost.",
    ),
    (
        "missing number",
        "A number between 1 and the greatest one seen of which no record arrived: a report was"
        " made and lost. If it arrives in time, a further total takes it in.",
    ),
    (
        "at most, upper bound",
        "What the proven time could grow to if all that is missing were found. It isn't known"
        " where the order's beginning or its end is missing.",
    ),
    (
        "dead letter",
        "A record that does not count, because it breaks a rule. Its reason is with it: for"
        " instance TOO_LATE (it came after the correction window), IN_THE_FUTURE (it ends after its"
        " arrival), KEY_MISMATCH (it was sent under another order's key), NOT_AVRO (it can't be"
        " read). It is kept, and can be repaired and sent back.",
    ),
    (
        "COMPLETE, INCOMPLETE, ABANDONED, RUNNING",
        "The status of a total. COMPLETE: the end was seen and no number is missing. INCOMPLETE:"
        " the end was seen, numbers are missing. ABANDONED: the reports stopped without an end."
        " RUNNING: an interim total of an order that goes on.",
    ),
    (
        "OPEN, ENDED, SETTLED, REOPENED, FORGOTTEN",
        "The order's state. OPEN: it goes on. ENDED: the end was seen, what is missing is waited"
        " for. SETTLED: a total stands. REOPENED: a record came later and changed something; a"
        " further total follows. FORGOTTEN: no record can be accepted any more.",
    ),
    (
        "revision",
        "The first total of an order, or a later one that takes its place because more arrived."
        " The latest one holds; all of them stay on record.",
    ),
    (
        "settle_grace, correction_grace",
        "How long missing records are waited for after the end, and after a late record.",
    ),
    ("idle_timeout", "After this time without a new record, an order counts as ABANDONED."),
    ("correction_window", "How long ago a record may have ended and still count."),
    ("interim_interval", "The longest time an order runs on without a total; then RUNNING."),
    (
        "evidence digest",
        "A fingerprint (SHA-256) of the proven time, the numbers seen and the end. Whoever has the"
        " records computes the same; if anything differs, the fingerprint does.",
    ),
    (
        "sent on, sent back",
        "A record that lay in another partition and was passed on to its own; or a dead letter that"
        " somebody sent in again, perhaps repaired. The origin is on the record.",
    ),
    (
        "life",
        "An order number that is used again long after its order ended begins a new order, which"
        " has nothing to do with the first one.",
    ),
)
"""(words, meaning)."""
