"""What is a leaf: a record of the totals topic, by its exact value. Pure.

Every committed record of the partition is a leaf, in the topic's order, whatever it holds: nothing
is passed over. The entry is the record's value, byte for byte, so a stranger can rebuild the log
from the topic. (A total's value holds its order number and its evidence's digest; the record's key
is the order number again.) Two kinds of records have a stand-in, because an entry of tlog-tiles has
at most 65,535 bytes:

    durabill-large-value@v1 BYTES SHA256     a value of more bytes, or one that begins "durabill-"
    durabill-no-value@v1                     a record without a value

No two values have the same entry. A value that has a stand-in is kept beside the log's tiles, in
`large/SHA256`.
"""

import re
from hashlib import sha256

from durabill.stream_processors.audit.seal.tiles import ENTRY_BYTES_MAX

_OURS = b"durabill-"
LARGE = b"durabill-large-value@v1"
_STAND_IN = re.compile(LARGE + rb" \d+ ([0-9a-f]{64})\n")
NO_VALUE = b"durabill-no-value@v1\n"


def entry_of(value: bytes | None) -> bytes:
    """Return the log's entry of a record by its value."""
    if value is None:
        return NO_VALUE
    if len(value) <= ENTRY_BYTES_MAX and not value.startswith(_OURS):
        return value
    return b"%s %d %s\n" % (LARGE, len(value), sha256(value).hexdigest().encode())


def large_path(entry: bytes) -> str | None:
    """Return where the value of a stand-in is kept below the log's folder, None for others."""
    found = _STAND_IN.fullmatch(entry)
    return None if found is None else f"large/{found[1].decode()}"
