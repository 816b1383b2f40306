"""The sealed log as a part of an audit: checked where there is one, and a key to check it with."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from durabill.schemas.text import counted
from durabill.stream_processors.audit.errors import AuditError
from durabill.stream_processors.audit.findings import Finding, Kind
from durabill.stream_processors.kafka.options import quiet
from durabill.stream_processors.kafka.reading import Progress
from durabill.stream_processors.settings import Settings


class Sealed(NamedTuple):
    """What came of the check. `totals` is how many are sealed, None where nothing was checked."""

    findings: list[Finding]
    notes: list[str]
    totals: int | None = None


def check_sealed(
    settings: Settings, key: str, trusted: Sequence[Path], progress: Progress
) -> Sealed:
    """Check the sealed log of the totals, where there is one and a key.

    `key` is the public key, or a file with it; empty: that of the settings' key file. `trusted` are
    checkpoints or receipts that somebody kept. Raises AuditError where such a one can't be checked
    for want of a key.
    """
    folder, has_key = settings.seal_folder, bool(key or settings.seal_key_file)
    if not has_key:
        if trusted:
            raise AuditError("--trusted needs the sealer's public key: give --seal-key")
        if folder.exists():
            return Sealed([], [f"the sealed log in {folder} is not checked: give --seal-key"])
        return Sealed([], [])
    if not folder.exists() and not trusted and not key:
        return Sealed([], [])
    # Signatures are an extra's, for those who have a sealed log.
    from durabill.stream_processors.audit.seal.check_all import check_seal
    from durabill.stream_processors.audit.seal.source import sealed_topic
    from durabill.stream_processors.audit.seal.witnesses import all_witnesses, keys_of

    kafka = quiet(settings.librdkafka())
    keys = keys_of(folder, key or None, settings.seal_key_file)
    witnessed = all_witnesses(
        kafka, settings.seal_topic, settings.totals_topic, settings.ledger_dsn, trusted
    )
    topic = sealed_topic(kafka, settings.totals_topic, progress)
    checked = check_seal(folder if folder.exists() else None, topic, keys, witnessed)
    unsealed = sum(each.unsealed for each in checked.logs)
    notes = [f"{counted(unsealed, 'total')} not sealed yet"] if unsealed else []
    findings = [
        Finding(
            Kind.SEAL_INCONSISTENT,
            each.service_order_number,
            each.revision,
            each.field,
            each.expected,
            each.found,
            each.place,
        )
        for each in checked.findings
    ]
    return Sealed(findings, notes, checked.size)
