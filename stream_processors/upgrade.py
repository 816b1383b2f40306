"""Rows of a checkpoint block of the version before, in today's layout."""

import numpy as np
from numpy.typing import NDArray

from stream_processors.blocks import OLD_COLUMNS_VERSION, BlockContent
from stream_processors.kernel import rows
from stream_processors.order import SETTLEMENTS_MAX

_OLD_ORDER = np.dtype(
    [(name, rows.ORDER[name]) for name in rows.ORDER.names or () if name != "unbilled_since_ms"]
)
assert _OLD_ORDER.itemsize == 104


def rows_in(content: BlockContent) -> NDArray[np.void]:
    """Return a block's rows in today's layout.

    What a row of version 2 doesn't say is filled in as `blocks` does it for plain orders.
    """
    if content.version != OLD_COLUMNS_VERSION:
        return np.frombuffer(content.rows, rows.ORDER)
    old = np.frombuffer(content.rows, _OLD_ORDER)
    held = np.zeros(len(old), rows.ORDER)
    for name in _OLD_ORDER.names or ():
        held[name] = old[name]
    held["unbilled_since_ms"] = old["deadline_ms"]
    settlements = np.clip(old["revision"], 1, SETTLEMENTS_MAX) - 1
    held["flags"] |= (settlements << rows.SETTLEMENTS_SHIFT).astype(np.uint8)
    return held
