"""Memory whose pages come into being as they are touched."""

import mmap
from typing import Any

import numpy as np
from numpy.typing import NDArray

NO_COMMIT = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0)
"""Flags of an anonymous mapping that reserves addresses, and nothing else."""


def reserve(count: int, dtype: Any) -> NDArray[Any]:
    """Return a zeroed array whose pages come into being as they are touched."""
    size = max(1, count) * np.dtype(dtype).itemsize
    return np.frombuffer(mmap.mmap(-1, size, flags=NO_COMMIT), dtype, count)
