"""How the gateway's loops over bytes and numbers are compiled.

numba compiles them when their module is first imported, which takes some seconds, and keeps the
result beside the source, or in the user's cache folder where that can't be written. It notices a
change of the module itself, but not of what is imported there: so limits come in as arguments.
"""

from typing import Any

import numba


def compiled(signature: Any) -> Any:
    """Compile with numba, for these types alone; cached where any folder can be written."""

    def decorate(function: Any) -> Any:
        try:
            return numba.njit(signature, cache=True, nogil=True)(function)
        except RuntimeError:  # no folder for the cache: it is compiled anew each time
            return numba.njit(signature, nogil=True)(function)

    return decorate
