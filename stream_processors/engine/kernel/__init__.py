"""The batch path's compiled half: the rules of `core` and `engine.orders`, over numpy rows.

    rows       what an order is in a row, and the arithmetic of its pieces
    index      the hash table from an order number's bytes to its row
    parse      the bytes of a record: its frame, its headers, its segment
    judge      what becomes of a record by itself
    tasks      the arguments of a call of `fold`
    fold       the main loop: a decompressed record batch into the rows
    maintain   what happens to rows between batches: freed, retired, restored, checked, asked
    settle     rows that are complete or due, settled and noted
    totals     settled rows as evidence texts and as Avro bytes
    scan       the registry ids in a batch
    upgrade    rows of an older checkpoint
    columnize  a batch taken apart into columns, for the archive
    pack       columns of the archive put together as batches
    unaligned  eight bytes at once from anywhere, trailing zeros, prefetches

The functions are compiled by numba at their first use, and cached. numba notices a change of the
file that a function is in, but not of the functions that it calls. So the name of the cache's
folder has a digest of all sources of this package: an upgrade never runs the arithmetic of the
version before.
"""

import hashlib
from pathlib import Path
from typing import Any

import numba


def _cache_folder() -> str:
    here = Path(__file__).parent
    digest = hashlib.sha256()
    for source in sorted(here.glob("*.py")):
        digest.update(source.read_bytes())
    name = f"numba-{numba.__version__}-{digest.hexdigest()[:16]}"
    for parent in (here / "__pycache__", Path.home() / ".cache" / "durabill"):
        folder = parent / name
        try:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / ".writable").touch()
        except OSError:
            continue
        return str(folder)
    return ""


_settings: Any = numba.config
_settings.CACHE_DIR = _cache_folder()

# Without numba's own reference counts: every call counted those of all `RowArrays`, up and down,
# which took most of the time. The Python caller holds the arrays meanwhile, and the kernel
# allocates nothing: scratch is handed in.
_OPTIONS: dict[str, Any] = {"cache": True, "nogil": True, "_nrt": False}


def compiled(function: Any) -> Any:
    """Compile with numba; for what is called from Python, or seldom."""
    return numba.njit(**_OPTIONS)(function)


def hot(function: Any) -> Any:
    """Compile with numba and inline into the callers: a call hands over seven words an array."""
    return numba.njit(forceinline=True, **_OPTIONS)(function)
