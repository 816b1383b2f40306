"""Rows as the version before wrote them into its checkpoints, in today's layout."""

import numpy as np
from numpy.typing import NDArray

from durabill.stream_processors.engine.kernel.rows import ORDER, TIMES_SETTLED, TIMES_SETTLED_SHIFT

_OLD_ORDER = np.dtype(
    [(name, ORDER[name]) for name in ORDER.names or () if name != "unbilled_since_ms"]
)
assert _OLD_ORDER.itemsize == 104


def rows_of_version_2(content: bytes) -> NDArray[np.void]:
    """Return the rows of a block of version 2.

    What they don't say is filled in as `blocks` does it for plain orders: each revision was a
    settlement, and interim totals count from the deadline.
    """
    old = np.frombuffer(content, _OLD_ORDER)
    held = np.zeros(len(old), ORDER)
    for name in _OLD_ORDER.names or ():
        held[name] = old[name]
    held["unbilled_since_ms"] = old["deadline_ms"]
    settlements_max = (TIMES_SETTLED >> TIMES_SETTLED_SHIFT) + 1
    settlements = np.clip(old["revision"], 1, settlements_max) - 1
    held["flags"] |= (settlements << TIMES_SETTLED_SHIFT).astype(np.uint8)
    return held
